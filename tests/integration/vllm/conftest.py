"""Real vLLM servers, started once for all tests in this folder: a policy, and models to score with.

`RUNG_VLLM` names the Python of an environment that holds vLLM; without it, `.venv-vllm` is tried.
"""

import os
import secrets
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from benchmarks.processes import end_group
from prm.manifest import ModelVersion, PolicyManifest, PrmManifest
from prm.registry import Registry
from search.generator import Generator
from search.generators.openai_server import OpenAIServer
from server.settings import BUNDLED_MODELS
from tests.server.conftest import HTTP

ROOT = Path(__file__).resolve().parents[3]
PYTHON = Path(os.environ.get("RUNG_VLLM", ROOT / ".venv-vllm" / "bin" / "python"))
START_TIMEOUT_S = 480.0
# One for all servers of a run.
API_KEY = secrets.token_hex(16)
MAX_SEQUENCES = 64
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "passive",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmServer:
    """A running vLLM: where it is, its key, and the name of the one model that it serves."""

    url: str
    api_key: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyServer(VllmServer):
    """A running vLLM and the version that it serves under `model`."""

    version: ModelVersion


@pytest.fixture(scope="session")
def registry() -> Registry:
    """The bundled models."""
    return Registry.open(BUNDLED_MODELS)


@pytest.fixture(scope="session")
def policy_version(registry: Registry) -> ModelVersion:
    """The bundled policy."""
    return next(v for v in registry.live() if isinstance(v.manifest, PolicyManifest))


@pytest.fixture(scope="session")
def prm_version(registry: Registry) -> ModelVersion:
    """The bundled PRM."""
    return next(v for v in registry.live() if isinstance(v.manifest, PrmManifest))


@pytest.fixture(scope="session")
def vllm(
    policy_version: ModelVersion, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PolicyServer]:
    """The bundled policy."""
    limit = policy_version.context_limit
    flags = [
        f"--max-model-len={limit}",
        f"--max-num-seqs={MAX_SEQUENCES}",
        # Room for all prompts in one step: one that is read in two, with a seed, ends vLLM 0.32 on
        # a CPU ("CPU Generator does not use offset", gpu_model_runner.py).
        f"--max-num-batched-tokens={MAX_SEQUENCES * limit}",
    ]
    model = ServedFolder(name=policy_version.manifest.name, folder=policy_version.folder)
    with running_vllm([model], tmp_path_factory.mktemp("vllm"), flags) as (server,):
        yield PolicyServer(
            url=server.url,
            api_key=server.api_key,
            model=server.model,
            version=policy_version,
        )


@pytest.fixture
async def server(vllm: PolicyServer, anyio_backend: str) -> AsyncIterator[OpenAIServer]:
    """Our connections to it."""
    async with OpenAIServer(vllm.url, api_key=vllm.api_key) as server:
        yield server


@pytest.fixture
def generator(server: OpenAIServer, vllm: PolicyServer) -> Generator:
    """The policy in it."""
    return server.generator(vllm.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedFolder:
    """A model folder, the name to serve it under, and flags and environment of its own."""

    name: str
    folder: Path
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def running_vllm(
    models: Sequence[ServedFolder], logs: Path, flags: Sequence[str] = ()
) -> Iterator[list[VllmServer]]:
    """One vLLM per model, each in a process group of its own, answering on a free loopback port."""
    if "RUNG_VLLM" in os.environ:
        assert PYTHON.is_file(), f"RUNG_VLLM names {PYTHON}, which does not exist"
    if not PYTHON.is_file():
        pytest.skip(f"no vLLM: {PYTHON} does not exist; set RUNG_VLLM to the Python that has it")
    with ExitStack() as stack:
        started = [stack.enter_context(_starting(model, logs, flags)) for model in models]
        for server, process, log in started:
            _wait_until_healthy(server.url, process, log)
        yield [server for server, _, _ in started]


@contextmanager
def _starting(
    model: ServedFolder, logs: Path, flags: Sequence[str]
) -> Iterator[tuple[VllmServer, "subprocess.Popen[bytes]", Path]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = VllmServer(url=f"http://127.0.0.1:{port}", api_key=API_KEY, model=model.name)
    log = logs / f"{model.name}.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_command(model, port), *flags, *model.flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, "VLLM_API_KEY": server.api_key, **model.environment},
            start_new_session=True,
        )
    try:
        yield server, process, log
    finally:
        end_group(process)


def _command(model: ServedFolder, port: int) -> list[str]:
    return [
        str(PYTHON),
        # Not `vllm serve`: the command line of the package vllm-cpu 0.32.0 looks for the metadata
        # of a package called vllm and ends.
        "-m",
        "vllm.entrypoints.openai.api_server",
        f"--model={model.folder}",
        f"--served-model-name={model.name}",
        "--host=127.0.0.1",
        f"--port={port}",
        "--dtype=float32",
        "--enforce-eager",
    ]


def _wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            if HTTP.get(f"{url}/health", timeout=5.0).is_success:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.2)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
    state = "is not healthy" if process.returncode is None else f"ended ({process.returncode})"
    pytest.fail(f"vLLM {state} after at most {START_TIMEOUT_S:.0f} s; its log ends:\n{tail}")
