"""A whole installation of real processes over one folder: Redis, server, worker, and a keeper.

The keeper starts anew what has ended, as systemd or compose would; nothing else helps.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from tests.redis_server import redis_command
from tests.server.conftest import answers, free_port, poll

Service = Literal["redis", "server", "worker"]
Target = Literal["redis", "server", "worker", "engine", "trainer"]

# How a child of server or worker is told from its neighbours.
_MODULES: Mapping[Target, str] = {"engine": "prm.engine", "trainer": "training.run"}


@dataclass
class Plant:
    """Processes by name. `kill` ends one of them as a power cut would."""

    folder: Path
    models: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self._redis_port = free_port()
        self._running: dict[Service, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self.starts: list[tuple[float, Service]] = []

    @property
    def runs(self) -> Path:
        """Where jobs, files and feedback lie."""
        return self.folder / "runs"

    def start(self, within_s: float = 60) -> None:
        """All services; returns when the server is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for service in ("redis", "server", "worker"):
            self._start(service)
        poll(lambda: answers(f"{self.url}/health/ready"), seconds=within_s, what="ready")
        self._keeper.start()

    def kill(self, target: Target) -> bool:
        """SIGKILL, to one process and nobody else; False where there is none to kill."""
        if target in ("redis", "server", "worker"):
            victim = self._running[target]
            victim.kill()
            return True
        module = _MODULES[target]
        for service in ("server", "worker"):
            for child in _children(self._running[service].pid):
                if module in child.command:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        psutil.Process(child.pid).kill()
                        return True
        return False

    def stop(self) -> None:
        """End everything, in order."""
        self._stopping.set()
        self._keeper.join()
        for service in ("server", "worker", "redis"):
            process = self._running[service]
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()

    def _start(self, service: Service) -> None:
        with open(self.folder / f"{service}.log", "ab") as log:
            self._running[service] = subprocess.Popen(
                self._command(service), env=self._environment, stdout=log, stderr=log
            )
        self.starts.append((time.monotonic(), service))

    def _command(self, service: Service) -> list[str]:
        if service == "redis":
            return redis_command(self._redis_port, self.folder / "redis")
        rung = [sys.executable, "-m", "server"]
        if service == "worker":
            return [*rung, "worker"]
        return [*rung, "serve", f"--port={self.url.rsplit(':', 1)[1]}"]

    @property
    def _environment(self) -> dict[str, str]:
        mine = {
            "RUNG_MODELS": str(self.models),
            "RUNG_RUNS": str(self.runs),
            "RUNG_REDIS_URL": f"redis://127.0.0.1:{self._redis_port}/0",
            "RUNG_THREADS": "1",
            "RUNG_KEYS_FILE": "/nonexistent",
        }
        return {**os.environ, **mine, **self.settings}

    def _keep(self) -> None:
        while not self._stopping.wait(0.1):
            for service, process in list(self._running.items()):
                if process.poll() is not None:
                    self._start(service)


@dataclass(frozen=True)
class _Child:
    pid: int
    command: str


def _children(pid: int) -> Iterator[_Child]:
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                yield _Child(child.pid, " ".join(child.cmdline()))
