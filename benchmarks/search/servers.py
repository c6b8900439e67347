"""The two servers that all contestants use: vLLM with the policy, and Rung with the PRM.

vLLM runs throughout. Rung is started anew for every turn, so that no PRM's score is known from the
turn before; both take the same port each time.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from benchmarks.contestant import ROOT, vllm_environment
from benchmarks.processes import end_group
from benchmarks.search.tasks import POLICY
from prm.engine.process import ENGINE_ENVIRONMENT

CONTEXT = 512
# Sixteen searches of sixteen beams.
MAX_SEQUENCES = 256
START_TIMEOUT_S = 480.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server: where it is, and the group of its processes."""

    name: str
    url: str
    process: "subprocess.Popen[bytes]"

    def counters(self, *names: str) -> dict[str, float]:
        """These metrics of it now, summed over all labels or over those of `NAME{LABEL,LABEL}`.

        One that has never been counted up is 0.
        """
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            lines = response.read().decode().splitlines()
        return {name: sum_of(lines, name) for name in names}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running_vllm(
    port: int,
    *,
    python: Path,
    is_eager: bool,
    block_size: int | None,
    log: IO[bytes],
    threads: int,
) -> Iterator[Server]:
    """vLLM with the policy. `block_size`: tokens of a block of its cache; None is its default."""
    command = _vllm_command(python, is_eager, block_size)
    with _running("vllm", command, port, "/health", vllm_environment(threads), log) as server:
        yield server


@contextmanager
def running_rung(port: int, *, vllm: Server, log: IO[bytes], threads: int) -> Iterator[Server]:
    """`rung serve` with vLLM for policies and an engine of its own with the PRM."""
    command = [sys.executable, "-m", "server", "serve", f"--policy-url={vllm.url}/v1"]
    with TemporaryDirectory(prefix="rung-bench-") as runs:
        environment = {"RUNG_THREADS": str(threads), "RUNG_RUNS": runs}
        with _running("rung", command, port, "/health/ready", environment, log) as server:
            yield server


def _vllm_command(python: Path, is_eager: bool, block_size: int | None) -> list[str]:
    return [
        # Not `vllm serve`, and room for all prompts in one step: see docs/performance.md.
        *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
        f"--model={ROOT / 'models' / POLICY / '1'}",
        f"--served-model-name={POLICY}",
        "--dtype=float32",
        f"--max-model-len={CONTEXT}",
        f"--max-num-seqs={MAX_SEQUENCES}",
        f"--max-num-batched-tokens={MAX_SEQUENCES * CONTEXT}",
        "--disable-uvicorn-access-log",
        *(("--enforce-eager",) if is_eager else ()),
        *((f"--block-size={block_size}",) if block_size is not None else ()),
    ]


@contextmanager
def _running(
    name: str,
    command: list[str],
    port: int,
    health: str,
    environment: Mapping[str, str],
    log: IO[bytes],
) -> Iterator[Server]:
    process = subprocess.Popen(
        [*command, "--host=127.0.0.1", f"--port={port}"],
        cwd=ROOT,
        env=os.environ | ENGINE_ENVIRONMENT | {"VLLM_NO_USAGE_STATS": "1"} | dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    server = Server(name=name, url=f"http://127.0.0.1:{port}", process=process)
    try:
        _wait_until_ready(server, health, log)
        yield server
    finally:
        end_group(process)


def _wait_until_ready(server: Server, path: str, log: IO[bytes]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if server.process.poll() is not None:
            raise SystemExit(f"{server.name} ended ({server.process.returncode}); see {log.name}")
        try:
            with urllib.request.urlopen(server.url + path):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise SystemExit(f"{server.name} is not ready after {START_TIMEOUT_S:.0f} s; see {log.name}")


def sum_of(lines: Iterable[str], name: str) -> float:
    """See `Server.counters`."""
    name, _, labels = name.rstrip("}").partition("{")
    values = [
        float(line.split()[-1])
        for line in lines
        if line.startswith((f"{name} ", f"{name}{{"))
        and all(label in line for label in labels.split(","))
    ]
    return sum(values)
