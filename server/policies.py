"""Who writes the steps: policies in the engine process, and those of a policy server."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from prm.errors import Unavailable, UnknownModel
from search.generator import Generator
from search.generators.breaker import Breaker
from search.generators.openai_server import OpenAIServer

# A policy server that has just told its models, and has not failed since, is not asked again.
LIST_KEPT_S = 2.0

logger = logging.getLogger(__name__)


class Policies:
    """Generators by name. A policy server's models come before local ones of the same name."""

    def __init__(
        self, local: Callable[[], Mapping[str, Generator]], remote: OpenAIServer | None
    ) -> None:
        """`local` tells those of the engine, which may change."""
        self._local = local
        self._remote = remote
        # None until the policy server has answered once.
        self._remote_names: list[str] | None = [] if remote is None else None
        self._asked_s = -LIST_KEPT_S
        self._asking: asyncio.Task[None] | None = None

    @property
    def breaker(self) -> Breaker | None:
        """The policy server's; None without one."""
        return self._remote.breaker if self._remote is not None else None

    async def get(self, name: str) -> Generator:
        """The policy of this name.

        Raises UnknownModel, or Unavailable when the policy server is dead and may have served it.
        """
        try:
            await self._know(name)
        except Unavailable as error:
            if self._remote_names is None or name in self._remote_names:
                raise Unavailable(
                    f"policy {name!r}: {error}", retry_after_s=error.retry_after_s
                ) from error
        if self._remote is not None and name in (self._remote_names or []):
            return self._remote.generator(name)
        if (found := self._local().get(name)) is not None:
            return found
        known = ", ".join(sorted({*self._local(), *(self._remote_names or [])})) or "none"
        raise UnknownModel(
            f"no policy named {name!r} is served here; there is {known}", param="policy"
        )

    async def remote_names(self) -> list[str]:
        """Models of the policy server; the last known ones while it does not answer."""
        try:
            await self._ask_remote()
        except Unavailable as error:
            logger.warning("%s", error)
        return self._remote_names or []

    async def aclose(self) -> None:
        """Close the connections to the policy server."""
        if self._asking is not None:
            self._asking.cancel()
        if self._remote is not None:
            await self._remote.aclose()

    async def _know(self, name: str) -> None:
        """Ask the policy server for its models, unless it has just said that it has this one."""
        if not (name in (self._remote_names or []) and self._has_just_told()):
            await self._ask_remote()

    def _has_just_told(self) -> bool:
        is_sound = self.breaker is not None and not self.breaker.is_suspect
        return is_sound and time.monotonic() - self._asked_s < LIST_KEPT_S

    async def _ask_remote(self) -> None:
        """Ask once for all who want to know at a time."""
        if self._remote is None:
            return
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(self._remote))
            # Where all who asked have gone, a failure is nobody's to hear.
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        # One who leaves does not end it for the others.
        await asyncio.shield(self._asking)

    async def _ask(self, remote: OpenAIServer) -> None:
        self._remote_names = list(await remote.models())
        self._asked_s = time.monotonic()
