"""Verifiers for a loop that waits: batches in, outcomes out, one event loop underneath."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from training.types import Problem
from training.verifiers.base import DEADLINE_S, Outcome, Verifier, grade_all


class VerifierPool:
    """Grades batches of responses until it is closed. Use it in `with`, from one thread.

    Entering raises Unavailable where the verifier cannot work on this machine. `graded` and
    `errors` count all responses so far, for events.
    """

    def __init__(self, verifier: Verifier, *, deadline_s: float = DEADLINE_S) -> None:
        self._verifier = verifier
        self._deadline_s = deadline_s
        # Workers belong to the loop that started them, so that there is one for all batches.
        self._runner = asyncio.Runner()
        self.graded = 0
        self.errors = 0

    def __enter__(self) -> Self:
        try:
            self._runner.run(self._verifier.start())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def grade(self, items: Sequence[tuple[Problem, str]]) -> list[Outcome]:
        """See `grade_all`."""
        outcomes = self._runner.run(grade_all(self._verifier, items, deadline_s=self._deadline_s))
        self.graded += len(outcomes)
        self.errors += sum(outcome.error is not None for outcome in outcomes)
        return outcomes

    def close(self) -> None:
        """End the verifier's processes. May be called again."""
        try:
            self._runner.run(self._verifier.aclose())
        finally:
            self._runner.close()
