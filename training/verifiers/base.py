"""What a verifier is: a problem and a response in, an outcome reward or an error out.

An error is no reward: it is left out of the batch and counted. Official code that put a number in
its place (0.5 in PRIME's, 0 in verl's) trained on its own crashes.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from training.types import Problem

DEADLINE_S = 120.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Either a reward in [0, 1], or the error for which there is none.

    >>> Outcome(reward=0.75), Outcome(error="out of time")
    """

    reward: float | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        assert (self.reward is None) != (self.error is None), "an outcome is a reward or an error"
        assert self.reward is None or 0 <= self.reward <= 1, f"reward {self.reward} of [0, 1]"


class Verifier(Protocol):
    """Grades responses, `concurrency` of them at a time."""

    @property
    def concurrency(self) -> int: ...

    async def start(self) -> None:
        """Find out, before anything is trained, that it can work here. Raises Unavailable."""
        ...

    async def grade(self, problem: Problem, response: str) -> Outcome:
        """The outcome of one response. May raise: `grade_all` makes an error of that."""
        ...

    async def aclose(self) -> None:
        """End what it started."""
        ...


async def grade_all(
    verifier: Verifier,
    items: Sequence[tuple[Problem, str]],
    *,
    deadline_s: float = DEADLINE_S,
) -> list[Outcome]:
    """The outcome of every response, in order; each has `deadline_s` once it is its turn.

    A grader that crashes, or meets the deadline, gives an error for that response alone.
    """
    turns = asyncio.Semaphore(verifier.concurrency)

    async def one(problem: Problem, response: str) -> Outcome:
        async with turns:
            try:
                async with asyncio.timeout(deadline_s) as deadline:
                    return await verifier.grade(problem, response)
            except TimeoutError as error:
                if deadline.expired():
                    return Outcome(error="the grader met its deadline")
                return _crash(error)
            # Whatever it is: an exception that gets out of here would be a batch that is lost, and
            # one that is swallowed a reward of 0 for what nobody looked at.
            except Exception as error:
                return _crash(error)

    return list(await asyncio.gather(*(one(*item) for item in items)))


def count_errors(outcomes: Iterable[Outcome]) -> Counter[str]:
    """How often each error occurred."""
    return Counter(outcome.error for outcome in outcomes if outcome.error is not None)


def _crash(error: Exception) -> Outcome:
    _log.warning("a grader crashed; the response is left out", exc_info=error)
    return Outcome(error=f"{type(error).__name__}: {str(error)[:200]}")
