"""A real redis-server on a port of its own, for tests that are marked `redis`.

A machine without one skips them by name; with `RUNG_REDIS=required` they fail there.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from redis import Redis, RedisError


class RedisServer:
    """One that can be killed and started again, on the same port, with what it had on disk."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = redis_command(self.port, folder)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while not self.answers():
            assert time.monotonic() < until, "redis-server does not answer"
            assert self._process.poll() is None, "redis-server ended"
            time.sleep(0.01)

    def answers(self) -> bool:
        """Whether it does so now."""
        with suppress(RedisError), Redis.from_url(self.url, socket_timeout=1) as redis:
            return bool(redis.ping())
        return False

    def kill(self) -> None:
        """SIGKILL; nothing happens when it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def redis_command(port: int, folder: Path) -> list[str]:
    """What starts a server that keeps all it has in this folder; skips the test where none is."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        assert os.environ.get("RUNG_REDIS") != "required", "no redis-server is installed"
        pytest.skip("no redis-server is installed (Debian: apt-get install redis-server)")
    folder.mkdir(exist_ok=True)
    return [
        binary,
        *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)),
        *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
    ]


@contextmanager
def running_redis() -> Iterator[RedisServer]:
    """A server that answers, killed at the end; skips the test where none is installed."""
    with tempfile.TemporaryDirectory(prefix="rung-redis-") as folder:
        server = RedisServer(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.kill()
