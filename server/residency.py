"""What the engine holds: versions are brought in beside those that serve, or in their place.

    beside      load, prove          → swap → leases run out → unload
    in place    close the name, leases run out, unload → load, prove → swap → open the name

In place is for a memory that cannot hold both. Requests for the name wait meanwhile, all others go
on; what cannot be loaded gives way to what was there before.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Literal

from prm.engine.client import EngineClient
from prm.errors import ModelFolderError, NoRoom, Unavailable
from prm.registry import Registry
from prm.registry.names import key_of
from server.scoring import Scoring
from server.serving import Serving

logger = logging.getLogger(__name__)

SwapMode = Literal["auto", "beside", "drain"]
# How long after a failure that may pass the same is tried again.
RETRY_S = 5.0
MOST_RETRIES = 3


class PutOff(Unavailable):
    """Requests that are under way keep a version from being exchanged in its place."""


class Residency:
    """Which versions the engine holds. One change at a time; for one event loop.

    `drain_s` is the longest that leases are waited for while their name is closed.
    """

    def __init__(
        self,
        serving: Serving,
        scoring: Scoring,
        engine: EngineClient,
        *,
        mode: SwapMode,
        drain_s: float,
    ) -> None:
        self._serving = serving
        self._scoring = scoring
        self._engine = engine
        self._mode = mode
        self._drain_s = drain_s
        self.keys = {key_of(folder) for folder in scoring.engine_folders(serving.registry)}

    @asynccontextmanager
    async def with_versions(self, registry: Registry) -> AsyncIterator[None]:
        """Inside it the engine holds what `registry` needs, proven; after it, what is served then.

        Raises ModelFolderError for what cannot be served; NoRoom, PutOff, Unavailable. What served
        before serves on then.
        """
        new = self._missing(registry)
        retiring = self._retiring(registry)
        is_in_place = bool(new and retiring) and self._mode == "drain"
        if new and not is_in_place:
            try:
                await self._load(new, only_if_it_fits=self._mode != "beside")
            except NoRoom as error:
                if not retiring:
                    raise
                logger.info("%s is exchanged in its place: %s", ", ".join(retiring), error)
                is_in_place = True
        async with self._in_place(new, retiring) if is_in_place else nullcontext():
            yield

    def unload_unused(self) -> None:
        """Let the engine forget what is not served, and held by no request, any more."""
        wanted = {key_of(folder) for folder in self._scoring.engine_folders(self._serving.registry)}
        self._unload({key for key in self.keys - wanted if not self._serving.is_held(key)})

    @asynccontextmanager
    async def _in_place(
        self, new: Sequence[Path], retiring: Collection[str]
    ) -> AsyncIterator[None]:
        with self._serving.closing({key.partition("@")[0] for key in retiring}):
            try:
                async with asyncio.timeout(self._drain_s):
                    await self._serving.when_given_back(retiring)
            except TimeoutError as error:
                raise PutOff(
                    f"requests that are under way hold {', '.join(sorted(retiring))} for longer "
                    f"than {self._drain_s:g} s; the swap is put off",
                    retry_after_s=RETRY_S,
                ) from error
            self._unload(retiring)
            is_over = False
            try:
                await self._load(new)
                yield
            except asyncio.CancelledError:
                is_over = True  # the server is going down
                raise
            finally:
                if not is_over:
                    await self._bring_back()

    async def _bring_back(self) -> None:
        """What is served, where the exchange came to nothing; a load that fails is tried again."""
        failures = 0
        while missing := self._missing(self._serving.registry):
            self.unload_unused()
            try:
                await self._engine.wait_settled()
                await self._load(missing)
            except (ModelFolderError, Unavailable) as error:
                logger.error("what served before could not be loaded again: %s", error)
                failures += isinstance(error, ModelFolderError)
                if failures == MOST_RETRIES:
                    return
                await asyncio.sleep(RETRY_S)

    def _missing(self, registry: Registry) -> list[Path]:
        folders = self._scoring.engine_folders(registry)
        return [folder for folder in folders if key_of(folder) not in self.keys]

    def _retiring(self, registry: Registry) -> list[str]:
        """What is served now and is needed no more under `registry`."""
        now = self._scoring.engine_folders(self._serving.registry)
        wanted = set(self._scoring.engine_folders(registry))
        gone = [key_of(folder) for folder in now if folder not in wanted]
        return [key for key in gone if key in self.keys]

    async def _load(self, folders: Sequence[Path], *, only_if_it_fits: bool = False) -> None:
        await self._engine.load(folders, only_if_it_fits=only_if_it_fits)
        self.keys |= {key_of(folder) for folder in folders}

    def _unload(self, keys: Collection[str]) -> None:
        if keys:
            self._engine.unload(list(keys))
            self.keys -= set(keys)
            logger.info("unloaded %s", ", ".join(sorted(keys)))
