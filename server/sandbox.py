"""Whether programs can be run on this machine, found out by running one."""

import asyncio
import logging
from contextlib import suppress
from typing import Literal

from training.grading.code import CodeGrader
from training.grading.jail import JailUnavailable

logger = logging.getLogger(__name__)

State = Literal["starting", "available", "unavailable"]
# A first run on a busy machine; it takes 0.1 s.
_PROBE_S = 20.0


class Sandbox:
    """The grader of code answers, and whether its walls can be put up.

    What a kernel offers by its own account may still be refused, by a container's seccomp profile
    or by AppArmor; only a run tells.
    """

    def __init__(self, grader: CodeGrader) -> None:
        self.grader = grader
        self.state: State = "starting"
        self._probe: asyncio.Task[str | None] | None = None

    def start(self) -> None:
        """Begin to find out; returns at once. The log says what came of it."""
        self._probe = asyncio.create_task(self._find_out())

    async def check(self) -> None:
        """Raises JailUnavailable, naming the missing wall; which is looked for again each time."""
        if self._probe is None or (self._probe.done() and self.state != "available"):
            self.start()
        assert self._probe is not None, "it was started"
        # Shielded: one caller's leaving is not the others' answer.
        if reason := await asyncio.shield(self._probe):
            raise JailUnavailable(reason)

    async def aclose(self) -> None:
        """End the first run if it is still going."""
        if self._probe is not None:
            self._probe.cancel()
            with suppress(asyncio.CancelledError):
                await self._probe

    async def _find_out(self) -> str | None:
        """Why programs cannot be run here; None where they can."""
        reason = None
        try:
            result = await self.grader.run("print(6 * 7)", seconds=_PROBE_S)
            if result.stdout != "42\n":
                told = result.stderr.strip()[-200:] or f"exit code {result.exit_code}"
                reason = f"untrusted code is not run here: a first program ended with {told}"
        except (JailUnavailable, OSError) as error:
            reason = str(error)
        self.state = "unavailable" if reason else "available"
        logger.info("code answers are %s", f"not available: {reason}" if reason else "available")
        return reason
