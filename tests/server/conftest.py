"""A real `rung serve` process over tiny models."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

# For questions that are put again and again: every new client reads the certificates of all
# authorities, which is 30 ms of a core. Servers come and go, so that no connection is kept.
HTTP = httpx2.Client(verify=False, timeout=60.0, limits=httpx2.Limits(max_keepalive_connections=0))


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A server process and how long it took to answer."""

    url: str
    process: subprocess.Popen[str]
    live_s: float
    ready_s: float


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def poll(condition: Callable[[], bool], *, seconds: float, what: str) -> float:
    """Seconds until the condition holds; fails the test when it does not."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.01)
    return time.monotonic() - started


def answers(url: str) -> bool:
    """Whether a GET gets 200."""
    try:
        return HTTP.get(url, timeout=5.0).status_code == 200
    except httpx2.TransportError:
        return False


@contextmanager
def rung_serve(
    models: Path, *, log: Path | None = None, within: Sequence[str] = (), **environment: str
) -> Iterator[RunningServer]:
    """Start a server on a free port, wait until it is ready, stop it at the end.

    What it writes to stderr is lost, or lies in `log`. `within` is a command that becomes the one
    behind it.
    """
    url = f"http://127.0.0.1:{(port := free_port())}"
    runs = tempfile.mkdtemp(prefix="rung-runs-")
    with open(log or os.devnull, "w") as stderr:
        process = subprocess.Popen(
            [
                *(*within, sys.executable, "-m", "server", "serve"),
                *(f"--port={port}", f"--models={models}"),
            ],
            env=os.environ
            | {"RUNG_THREADS": "1", "RUNG_KEYS_FILE": "/nonexistent", "RUNG_RUNS": runs}
            | environment,
            text=True,
            stderr=stderr,
        )
    try:
        live_s = poll(lambda: answers(f"{url}/health/live"), seconds=20, what="live")
        ready_s = live_s + poll(lambda: answers(f"{url}/health/ready"), seconds=60, what="ready")
        yield RunningServer(url=url, process=process, live_s=live_s, ready_s=ready_s)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
        shutil.rmtree(runs)


@pytest.fixture(scope="session")
def server(tiny_models: Path) -> Iterator[RunningServer]:
    """One server for all tests that do not harm it."""
    with rung_serve(tiny_models) as running:
        yield running


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx2.Client]:
    """A client of that server."""
    with httpx2.Client(base_url=server.url, timeout=60, verify=False) as client:
        yield client


def without_clock(answer: dict[str, Any]) -> dict[str, Any]:
    """A search's answer without what differs between two equal searches."""
    kept = {k: v for k, v in answer.items() if k not in ("id", "created", "timing_ms")}
    # What was computed for the first of two equal searches is known to the second.
    usage = dict(answer["usage"])
    usage["read"] = usage.pop("scored_tokens") + usage.pop("cached_tokens")
    return kept | {"usage": usage}
