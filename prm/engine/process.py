"""Starting an engine process, and noticing that it ended or gives no sign of life."""

import asyncio
import logging
import os
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# How often a loaded engine gives a sign of life.
BEAT_S = 1.0
# Without it OpenMP threads spin while they wait, and an engine beside an API process and its
# clients decodes forty times slower. It must be set before torch is imported.
ENGINE_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# The engine needs none of the server's secrets, nor to know where they lie.
_SECRETS = ("RUNG_API_KEYS", "RUNG_POLICY_API_KEY", "RUNG_SCORING_API_KEY", "RUNG_REDIS_URL")
WITHHELD = (*_SECRETS, *(f"{name}_FILE" for name in _SECRETS), "REDIS_URL")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine runs.

    `threads` None leaves one core to the API process; `token_budget` None is the device's own. One
    that was silent for `silence_s` is killed and replaced.
    """

    device: str = "cpu"
    dtype: str = "auto"
    threads: int | None = None
    max_batch: int = 64
    token_budget: int | None = None
    cache_mb: int = 1024
    silence_s: float = 30.0

    @property
    def num_threads(self) -> int:
        """CPU threads that the engine takes."""
        return self.threads or max(1, (os.cpu_count() or 2) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProcess:
    """A started engine that has connected: for its messages, and for its pulse.

    The pulse is a byte every `BEAT_S`, from the moment that the engine has loaded.
    """

    process: asyncio.subprocess.Process
    reader: StreamReader
    writer: StreamWriter
    pulse: StreamReader
    pulse_writer: StreamWriter

    async def kill_when_silent(self, silence_s: float) -> None:
        """Watch the pulse until the process ends, or kill it: stopped, it keeps its sockets open.

        Both halves of `silence_s` must pass without a beat. The first may have passed because this
        process was stopped itself; then the beats lie in the socket, and the second finds them.
        """
        missed = 0
        has_ended = not await self.pulse.read(1)
        while missed < 2 and not has_ended:
            try:
                async with asyncio.timeout(silence_s / 2):
                    has_ended = not await self.pulse.read(1 << 12)
                missed = 0
            except TimeoutError:
                missed += 1
        if not has_ended:
            logger.error(
                "the engine process %d gave no sign of life for %g s; it is killed",
                self.process.pid,
                silence_s,
            )
            self.process.kill()

    async def end(self) -> None:
        """Close its sockets, which is how it is told to go; kill it when it does not."""
        self.writer.close()
        self.pulse_writer.close()
        try:
            await asyncio.wait_for(self.process.wait(), timeout=5)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


async def start_engine(
    folders: Sequence[Path], options: EngineOptions, socket_path: Path
) -> EngineProcess | None:
    """Start one and wait until it connects, or None when it ended before that."""
    connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    connections: list[tuple[StreamReader, StreamWriter]] = []

    def accept(reader: StreamReader, writer: StreamWriter) -> None:
        # First the one for messages, then the one for the pulse; nobody else can connect.
        connections.append((reader, writer))
        if len(connections) == 2:
            connected.set_result(None)

    socket_path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(accept, path=socket_path)
    process = await asyncio.create_subprocess_exec(
        *_command(folders, options, socket_path),
        env=engine_environment(),
        start_new_session=True,
    )
    ended = asyncio.ensure_future(process.wait())
    try:
        waited: set[asyncio.Future[Any]] = {connected, ended}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not connected.done():
            return None
        (reader, writer), (pulse, pulse_writer) = connections
        return EngineProcess(
            process=process, reader=reader, writer=writer, pulse=pulse, pulse_writer=pulse_writer
        )
    finally:
        ended.cancel()
        if not connected.done():
            connected.cancel()
            for _, writer in connections:
                writer.close()
            if process.returncode is None:
                process.kill()
                await process.wait()
        server.close()


def _command(folders: Sequence[Path], options: EngineOptions, socket_path: Path) -> list[str]:
    return [
        sys.executable,
        # Not from the current directory: a torch.py lying there is not torch.
        "-P",
        "-m",
        "prm.engine.worker",
        f"--socket={socket_path}",
        f"--device={options.device}",
        f"--dtype={options.dtype}",
        f"--threads={options.num_threads}",
        f"--max-batch={options.max_batch}",
        *([f"--token-budget={options.token_budget}"] if options.token_budget else []),
        f"--cache-mb={options.cache_mb}",
        *map(str, folders),
    ]


def engine_environment() -> dict[str, str]:
    """What a process that runs models is started with."""
    kept = {name: value for name, value in os.environ.items() if name not in WITHHELD}
    return ENGINE_ENVIRONMENT | kept
