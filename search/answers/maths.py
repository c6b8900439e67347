"""Answers compared by mathematics: math-verify, in processes that can be killed.

math-verify's own time-outs rest on `signal.alarm`, which works in the main thread only and stops
no C code; without them a pathological expression hangs for ever. So it runs elsewhere, and what
takes too long, too much memory or breaks is *undecided*: neither right nor wrong.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

from search.answers.equivalence import Outcome
from search.answers.lease import PoolLost, WorkerLost
from search.answers.normal import exact_key, normalise
from search.answers.pool import WorkerPool

# Longer texts are compared as written only.
MAX_COMPARED_CHARS = 4096
_MAX_REMEMBERED = 4096
# In the spelling of `normalise`, which has no leading zeros.
_INTEGER = re.compile(r"-?[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class MathRules:
    """What counts as equal. The defaults are math-verify's.

    `float_rounding`: decimals that a rounded number must agree to. `strict`: letters matter, and a
    set is no tuple. `relations_as_sets`: 1 < x < 2 is the interval (1, 2). `ordered`: "1, 2"
    without braces is a sequence, not a set.
    """

    float_rounding: int = 6
    strict: bool = True
    relations_as_sets: bool = False
    ordered: bool = False


@dataclass(slots=True)
class _Undecided:
    """What ran out of time before: it is not tried again. `count` is how often anything did."""

    count: int = 0
    pairs: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)
    answers: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def add(self, *, pair: tuple[str, str] | None = None, answer: str | None = None) -> None:
        if pair is not None:
            _remember(self.pairs, pair)
        if answer is not None:
            _remember(self.answers, answer)


class MathAnswers:
    """`Equivalence` by math-verify. Its processes start with `begin()`, else on the first use.

    They end with `aclose()`.

    `deadline_s` bounds one reading or comparison, `group_s` one call of `group`; what is left then
    counts as different.

    >>> async def example() -> list[int]:
    ...     async with MathAnswers(workers=1) as answers:
    ...         return await answers.group(["1/2", "0.5", "2", r"\\frac{1}{2}"])
    >>> asyncio.run(example())
    [0, 0, 2, 0]
    """

    def __init__(
        self,
        rules: MathRules | None = None,
        *,
        workers: int = 2,
        deadline_s: float = 2.0,
        group_s: float = 10.0,
        memory_mb: int = 512,
        pool: WorkerPool | None = None,
    ) -> None:
        self.rules = rules or MathRules()
        self.deadline_s = deadline_s
        self.group_s = group_s
        self._pool = pool or WorkerPool(workers=workers, memory_mb=memory_mb)
        self._known = _Undecided()

    def by(self, rules: MathRules) -> "MathAnswers":
        """The same processes and what they could not decide, comparing by other rules."""
        if rules == self.rules:
            return self
        other = MathAnswers(
            rules, deadline_s=self.deadline_s, group_s=self.group_s, pool=self._pool
        )
        other._known = self._known
        return other

    async def __aenter__(self) -> Self:
        await self._pool.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def begin(self) -> None:
        """Begin to start the processes; returns at once. It takes them about a second."""
        self._pool.begin()

    async def aclose(self) -> None:
        """End the processes."""
        await self._pool.aclose()

    @property
    def undecided(self) -> int:
        """How often something could not be decided, for metrics."""
        return self._known.count

    @property
    def processes_replaced(self) -> int:
        """See `WorkerPool.replaced`."""
        return self._pool.replaced

    async def group(self, answers: Sequence[str]) -> list[int]:
        """See `Equivalence.group`. Raises Unavailable when no process can be started."""
        keys = [exact_key(answer) for answer in answers]
        first: dict[str, int] = {}
        for index, key in enumerate(keys):
            first.setdefault(key, index)
        ends = time.monotonic() + self.group_s
        representatives: list[int] = []
        group_of: dict[str, int] = {}
        for key, index in first.items():
            place = None
            if representatives and time.monotonic() < ends:
                others = [normalise(answers[other]) for other in representatives]
                place, _ = await self._first_equal(normalise(answers[index]), others, ends)
            if place is None:
                representatives.append(index)
                group_of[key] = index
            else:
                group_of[key] = representatives[place]
        return [group_of[key] for key in keys]

    async def is_equal(self, gold: str, answer: str) -> Outcome:
        """See `Equivalence.is_equal`. Raises Unavailable when no process can be started."""
        if exact_key(gold) == exact_key(answer):
            return "equal"
        place, is_decided = await self._first_equal(
            normalise(answer), [normalise(gold)], time.monotonic() + self.group_s
        )
        if place is not None:
            return "equal"
        return "different" if is_decided else "undecided"

    async def _first_equal(
        self, answer: str, others: list[str], ends: float
    ) -> tuple[int | None, bool]:
        """The place of the first equal one; and whether every earlier one was decided."""
        is_decided, start = True, 0
        while start < len(others):
            open_ = [
                place
                for place in range(start, len(others))
                if not _are_two_integers(answer, others[place])
            ]
            places = [place for place in open_ if self._may_compare(answer, others[place])]
            is_decided &= len(places) == len(open_)
            left_s = ends - time.monotonic()
            if not places or left_s <= 0:
                return None, is_decided and not places
            asked = [others[place] for place in places]
            found, lost_at = await self._ask(answer, asked, min(self.deadline_s, left_s))
            if lost_at is None:
                return None if found is None else places[found], is_decided
            is_decided = False
            self._known.count += 1
            if lost_at < 0:
                return None, False
            start = places[lost_at] + 1
        return None, is_decided

    def _may_compare(self, answer: str, other: str) -> bool:
        known = self._known
        return not (
            max(len(answer), len(other)) > MAX_COMPARED_CHARS
            or answer in known.answers
            or other in known.answers
            or (other, answer) in known.pairs
        )

    async def _ask(
        self, answer: str, others: list[str], silence_s: float, *, is_again: bool = False
    ) -> tuple[int | None, int | None]:
        """(place of the first equal one, None), or (None, place at which the worker was lost)."""
        request = {
            "answer": answer,
            "others": others,
            "rules": asdict(self.rules),
            "cpu_s": self.group_s + self.deadline_s,
        }
        last: dict[str, Any] = {"at": -1, "doing": "read"}
        try:
            async with self._pool.worker() as lease:
                async for last in lease.ask(request, silence_s=silence_s):
                    if "first" in last:
                        return last["first"], None
        except PoolLost:
            # No answer is to be remembered for that; a second time is one too many.
            if is_again:
                return None, last["at"]
            return await self._ask(answer, others, silence_s, is_again=True)
        except WorkerLost:
            pass
        at: int = last["at"]
        if last["doing"] == "compare":
            self._known.add(pair=(others[at], answer))
        else:
            self._known.add(answer=others[at] if at >= 0 else answer)
        return None, at


def _are_two_integers(answer: str, other: str) -> bool:
    """Whether these are integers, and so two numbers, as they are written in two ways.

    Most answers are; a search with twenty of them would ask a worker for each.
    """
    return bool(answer != other and _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(other))


def _remember(known: OrderedDict[Any, None], item: Any) -> None:
    known[item] = None
    while len(known) > _MAX_REMEMBERED:
        known.popitem(last=False)
