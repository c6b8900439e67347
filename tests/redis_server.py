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

    def __init__(self, binary: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._binary = binary
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            [
                self._binary,
                *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)),
                *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
            ],
            stdout=subprocess.DEVNULL,
        )
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


@contextmanager
def running_redis() -> Iterator[RedisServer]:
    """A server that answers, killed at the end; skips the test where none is installed."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        assert os.environ.get("RUNG_REDIS") != "required", "no redis-server is installed"
        pytest.skip("no redis-server is installed (Debian: apt-get install redis-server)")
    with tempfile.TemporaryDirectory(prefix="rung-redis-") as folder:
        server = RedisServer(binary, Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.kill()
