"""Sees what was published, brings it in, and swaps.

    a pointer changed → verify files → load, golden scores (residency.py) → swap → old ones go

A server looks at the pointers every `poll_s` seconds, and at once when it is woken: a message that
was lost costs at most one look. What cannot be served is told and left; the versions that serve go
on serving.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from prm.engine.client import EngineClient
from prm.errors import Conflict, ModelFolderError, NoRoom, Unavailable
from prm.registry import Pointer, Registry, Trial, check_may_serve, read_pointers
from server.residency import RETRY_S, Residency
from server.scoring import Scoring
from server.serving import Serving

logger = logging.getLogger(__name__)

LONGEST_RETRY_S = 120.0
Stamp = tuple[tuple[str, int, int], ...]


class Reloader:
    """Keeps `serving` at what the folder of versions says. `start` first, `close` last.

    `failures` are versions that are meant to serve and cannot, by key, with the reason. `on_swap`
    is told the seconds of a swap, `on_change` the name whose pointer was changed here, and
    `on_promotion` in a thread the name that another version is live of, and the versions in use.
    """

    def __init__(
        self,
        serving: Serving,
        scoring: Scoring,
        engine: EngineClient,
        residency: Residency,
        *,
        poll_s: float,
        on_swap: Callable[[float], None] = lambda seconds: None,
        on_change: Callable[[str], None] = lambda name: None,
        on_promotion: Callable[[str, Collection[str]], None] | None = None,
    ) -> None:
        self._serving = serving
        self._scoring = scoring
        self._engine = engine
        self.residency = residency
        self._poll_s = poll_s
        self._on_swap = on_swap
        self._on_change = on_change
        self._on_promotion = on_promotion
        self._busy = asyncio.Lock()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._after: set[asyncio.Task[None]] = set()
        self.failures: dict[str, str] = {}
        serving.on_idle = self._when_idle

    def start(self) -> None:
        """Begin to watch; returns at once."""
        self._task = asyncio.create_task(self._watch(), name="reloader")

    def wake(self) -> None:
        """Look at the pointers now."""
        self._woken.set()

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*self._after)

    async def change(
        self,
        name: str,
        version: str | None,
        change: Callable[[Path], Pointer],
        *,
        on_trial: bool = False,
    ) -> None:
        """Change a pointer and serve what it says, or leave both as they are.

        A `version` that is to answer, or to be tried beside the live one, is loaded and proven
        here before. Raises what `change` does, Conflict for a version that cannot be served,
        Unavailable.
        """
        root = self._serving.registry.root
        async with self._busy:
            try:
                if version is None:
                    await self._change(name, change)
                else:
                    await asyncio.to_thread(check_may_serve, root, name, version)
                    registry = await self._registry_with(name, version, on_trial)
                    async with self.residency.with_versions(registry):
                        await self._change(name, change)
            except ModelFolderError as error:
                logger.error("%s@%s cannot be served: %s", name, version, error)
                raise _not_served(name, version, error.reason) from error
            except NoRoom as error:
                raise _not_served(name, version, str(error)) from error
            finally:
                self.residency.unload_unused()

    async def _change(self, name: str, change: Callable[[Path], Pointer]) -> None:
        await asyncio.to_thread(change, self._serving.registry.root)
        await self._reload([name])
        self._on_change(name)

    async def _registry_with(self, name: str, version: str, on_trial: bool) -> Registry:
        """What is to be served: this version live, or beside the live one."""
        current = self._serving.registry
        before = current.pointers.get(name)
        if before is None:
            pointer = Pointer(live=version)
        elif on_trial:
            pointer = before.model_copy(update={"shadow": Trial(version=version, fraction=1)})
        else:
            pointer = before.with_live(version)
        return await asyncio.to_thread(current.with_pointers, {**current.pointers, name: pointer})

    async def _watch(self) -> None:
        await self._engine.wait_settled()
        root = self._serving.registry.root
        # At first, what was published while the engine was starting.
        seen: Stamp | None = None
        retry_at, retry_s = math.inf, RETRY_S
        while True:
            self._woken.clear()
            stamp = _stamp(root)
            if stamp == seen and time.monotonic() < retry_at:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), self._poll_s)
                continue
            # An exchange that is put off has kept requests waiting: less and less often.
            retry_s = RETRY_S if stamp != seen else min(LONGEST_RETRY_S, 2 * retry_s)
            seen, is_done = stamp, False
            try:
                async with self._busy:
                    is_done = await self._reload()
                    self.residency.unload_unused()
            except Exception:
                # Whatever it was, those that serve go on.
                logger.exception("versions could not be loaded")
            retry_at = math.inf if is_done else time.monotonic() + retry_s

    async def _reload(self, names: Iterable[str] | None = None) -> bool:
        """Name by name: what cannot be served keeps none of the others from it.

        False where something may work later.
        """
        started = time.monotonic()
        before = self._serving.registry
        wanted = await asyncio.to_thread(read_pointers, before.root)
        remote = self._scoring.remote_names
        self.failures = {k: v for k, v in self.failures.items() if _is_wanted(k, wanted)}
        is_done = True
        for name in sorted(wanted.keys() | before.pointers.keys() if names is None else names):
            current = self._serving.registry
            pointer = wanted.get(name)
            if pointer == current.pointers.get(name):
                continue
            if name in remote:
                logger.warning("%s changed, and its own server scores it: start both anew", name)
                continue
            others = {n: p for n, p in current.pointers.items() if n != name}
            pointers = others if pointer is None else others | {name: pointer}
            is_done &= await self._swap(name, current, pointers)
        if self._serving.registry is not before:
            self._on_swap(time.monotonic() - started)
        return is_done

    async def _swap(self, name: str, current: Registry, pointers: Mapping[str, Pointer]) -> bool:
        """Serve what a name's pointer says; False where it cannot be now and may be later."""
        started = time.monotonic()
        try:
            registry = await asyncio.to_thread(current.with_pointers, pointers)
            async with self.residency.with_versions(registry):
                before = self._serving.snapshot
                # Tokenizers are read, a tenth of a second.
                snapshot = await asyncio.to_thread(
                    self._scoring.snapshot, registry, self._engine, before
                )
                self._serving.swap(snapshot)
        except (ModelFolderError, Unavailable) as error:
            reason = error.reason if isinstance(error, ModelFolderError) else str(error)
            for version in pointers[name].served if name in pointers else ():
                if current.get(f"{name}@{version}") is None:
                    self.failures[f"{name}@{version}"] = reason
            logger.error("%s stays as it is, what is new cannot be served: %s", name, error)
            return isinstance(error, ModelFolderError)
        if name in pointers:
            took = time.monotonic() - started
            logger.info("%s: %s after %.2f s", name, pointers[name].model_dump_json(), took)
            before_it = current.pointers.get(name)
            if before_it is not None and before_it.live != pointers[name].live:
                self._promoted(name)
        return True

    def _promoted(self, name: str) -> None:
        if self._on_promotion is not None:
            work = asyncio.to_thread(self._on_promotion, name, frozenset(self.residency.keys))
            task = asyncio.create_task(work)
            self._after.add(task)
            task.add_done_callback(self._after.discard)

    def _when_idle(self) -> None:
        # A version that is being brought in is not wanted yet; who brings it in looks at the end.
        if not self._busy.locked():
            self.residency.unload_unused()


def _not_served(name: str, version: str | None, reason: str) -> Conflict:
    return Conflict(f"{name}@{version} cannot be served here: {reason}", param="version")


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
