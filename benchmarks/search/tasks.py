"""What a contestant is told to do in a turn, and what it tells of it. Standard library only."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

POLICY = "rung-arith-policy"
PRM = "rung-arith-prm"
MAX_TOKENS = 160
TEMPERATURE = 1.0
MAX_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Task:
    """Searches for problems of the bundled task: `n` candidates each, all at once or in turn.

    `strategy` is best_of_n or beam; `width` is how often a beam that survives is continued.
    """

    strategy: str
    n: int
    width: int
    problems: Sequence[str]
    seed: int
    is_at_once: bool = False

    def to_json(self) -> dict[str, Any]:
        """For a contestant's stdin."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The winner of one search, and the seconds that it took its caller."""

    text: str
    seconds: float


Search = Callable[[str, int], Awaitable[str]]
"""From a problem and its place in the task, the winner's text."""


async def search_in_turn(task: Task, search: Search) -> list[Found]:
    """One search after the other."""
    return [await timed(search, problem, place) for place, problem in enumerate(task.problems)]


async def timed(search: Search, problem: str, place: int) -> Found:
    """One search with its time."""
    started = time.perf_counter()
    text = await search(problem, place)
    return Found(text=text, seconds=time.perf_counter() - started)


def told(found: Sequence[Found], seconds: float) -> dict[str, Any]:
    """A turn's answer: `seconds` from its first request to its last answer."""
    return {
        "seconds": seconds,
        "search_seconds": [each.seconds for each in found],
        "texts": [each.text for each in found],
    }
