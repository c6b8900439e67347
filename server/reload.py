"""Sees what was published, loads it beside what serves, proves it, and swaps.

    a pointer changed → verify files → load beside, golden scores → swap → leases end → unload

Replicas look at the pointers every `poll_s` seconds, so that a message that was lost costs at most
one look. What cannot be served is told and left; the versions that serve go on serving.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from prm.engine.client import EngineClient
from prm.errors import Conflict, ModelFolderError, Unavailable
from prm.registry import Pointer, Registry, check_may_serve, read_pointers
from prm.registry.names import key_of
from server.scoring import Scoring
from server.serving import Serving

logger = logging.getLogger(__name__)

# How long after a failure that may pass the same versions are tried again.
RETRY_S = 5.0
Stamp = tuple[tuple[str, int, int], ...]


class Reloader:
    """Keeps `serving` at what the folder of versions says. `start` first, `close` last.

    `failures` are versions that are meant to serve and cannot, by key, with the reason.
    """

    def __init__(
        self,
        serving: Serving,
        scoring: Scoring,
        engine: EngineClient,
        *,
        poll_s: float,
        on_swap: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._serving = serving
        self._scoring = scoring
        self._engine = engine
        self._poll_s = poll_s
        self._on_swap = on_swap
        self._busy = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._loaded = {key_of(folder) for folder in scoring.engine_folders(serving.registry)}
        self.failures: dict[str, str] = {}
        serving.on_idle = self._when_idle

    def start(self) -> None:
        """Begin to watch; returns at once."""
        self._task = asyncio.create_task(self._watch(), name="reloader")

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def change(
        self, name: str, version: str | None, change: Callable[[Path], Pointer]
    ) -> None:
        """Change a pointer and serve what it says, or leave both as they are.

        A `version` that is to answer is loaded and proven here before. Raises what `change` does,
        Conflict for a version that cannot be served, Unavailable.
        """
        root = self._serving.registry.root
        async with self._busy:
            if version is not None:
                await asyncio.to_thread(check_may_serve, root, name, version)
                await self._prove(name, version)
            try:
                await asyncio.to_thread(change, root)
                await self._reload()
            finally:
                self._unload_unused()

    async def _prove(self, name: str, version: str) -> None:
        current = self._serving.registry
        try:
            pointers = {**current.pointers, name: Pointer(live=version)}
            registry = await asyncio.to_thread(current.with_pointers, pointers)
            await self._load(registry)
        except ModelFolderError as error:
            logger.error("%s@%s cannot be served: %s", name, version, error)
            raise Conflict(
                f"{name}@{version} cannot be served here: {error.reason}", param="version"
            ) from error

    async def _load(self, registry: Registry) -> None:
        """What the engine lacks of these. Raises ModelFolderError, Unavailable."""
        folders = self._scoring.engine_folders(registry)
        new = [folder for folder in folders if key_of(folder) not in self._loaded]
        if new:
            await self._engine.load(new)
            self._loaded |= {key_of(folder) for folder in new}

    async def _watch(self) -> None:
        await self._engine.wait_settled()
        root = self._serving.registry.root
        # At first, what was published while the engine was starting.
        seen: Stamp | None = None
        retry_at = math.inf
        while True:
            stamp = _stamp(root)
            if stamp == seen and time.monotonic() < retry_at:
                await asyncio.sleep(self._poll_s)
                continue
            seen, retry_at = stamp, math.inf
            try:
                async with self._busy:
                    await self._reload()
                    self._unload_unused()
            except Unavailable as error:
                logger.warning("versions could not be loaded now: %s", error)
                retry_at = time.monotonic() + RETRY_S
            except Exception:
                # Whatever it was, those that serve go on.
                logger.exception("versions could not be loaded")
                retry_at = time.monotonic() + RETRY_S

    async def _reload(self) -> None:
        """Name by name: what cannot be served keeps none of the others from it."""
        started = time.monotonic()
        before = self._serving.registry
        wanted = await asyncio.to_thread(read_pointers, before.root)
        remote = self._scoring.remote_names
        self.failures = {k: v for k, v in self.failures.items() if _is_wanted(k, wanted)}
        for name in sorted(wanted.keys() | before.pointers.keys()):
            current = self._serving.registry
            pointer = wanted.get(name)
            if pointer == current.pointers.get(name):
                continue
            if name in remote:
                logger.warning("%s changed, and its own server scores it: start both anew", name)
                continue
            others = {n: p for n, p in current.pointers.items() if n != name}
            pointers = others if pointer is None else others | {name: pointer}
            await self._swap(name, current, pointers)
        if self._serving.registry is not before:
            self._on_swap(time.monotonic() - started)

    async def _swap(self, name: str, current: Registry, pointers: Mapping[str, Pointer]) -> None:
        started = time.monotonic()
        try:
            registry = await asyncio.to_thread(current.with_pointers, pointers)
            await self._load(registry)
        except ModelFolderError as error:
            for version in pointers[name].served if name in pointers else ():
                if current.get(f"{name}@{version}") is None:
                    self.failures[f"{name}@{version}"] = error.reason
            logger.error("%s stays as it is, what is new cannot be served: %s", name, error)
            return
        self._serving.swap(self._scoring.snapshot(registry, self._engine, self._serving.snapshot))
        if name in pointers:
            took = time.monotonic() - started
            logger.info("%s: %s after %.2f s", name, pointers[name].model_dump_json(), took)

    def _when_idle(self) -> None:
        # A version that is being brought in is not wanted yet; who brings it in looks at the end.
        if not self._busy.locked():
            self._unload_unused()

    def _unload_unused(self) -> None:
        wanted = {key_of(folder) for folder in self._scoring.engine_folders(self._serving.registry)}
        unused = [
            key for key in self._loaded if key not in wanted and not self._serving.is_held(key)
        ]
        if unused:
            self._engine.unload(unused)
            self._loaded -= set(unused)
            logger.info("unloaded %s", ", ".join(sorted(unused)))


def _is_wanted(key: str, pointers: Mapping[str, Pointer]) -> bool:
    name, _, version = key.partition("@")
    return name in pointers and version in pointers[name].served


def _stamp(root: Path) -> Stamp:
    """Changes when a pointer does. Pointers land by renaming, so that their inodes change."""
    stamps = []
    for path in sorted(root.glob("*/live.json")):
        with suppress(OSError):
            stat = path.stat()
            stamps.append((str(path), stat.st_ino, stat.st_mtime_ns))
    return tuple(stamps)
