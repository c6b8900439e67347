"""New versions on real requests: a canary that is watched, and a shadow that nobody sees.

A canary that fails more often than the live version, or whose scores drift from the live version's,
is ended by itself: rejected, with the numbers as the reason.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from prm.errors import ModelFault, RungError
from prm.manifest import ModelVersion
from prm.registry import Pointer, Verdict
from prm.scorer import ScoredBatch

logger = logging.getLogger(__name__)

# Shadow scorings under way at a time: more requests than that are not scored twice.
MOST_SHADOWS = 4
# Fewer failures than this may be anybody's.
LEAST_FAILURES = 3
# How many standard errors two mean scores lie apart before it is no accident.
STANDARD_ERRORS = 4.0


@dataclass(slots=True)
class Tally:
    """What a version has done: requests, failures, and the scores of items."""

    requests: int = 0
    failures: int = 0
    items: int = 0
    total: float = 0.0
    squares: float = 0.0
    difference: float = 0.0
    distance: float = 0.0

    def add(self, scores: Sequence[float]) -> None:
        """A request that was answered with these scores of items."""
        self.requests += 1
        self.items += len(scores)
        self.total += math.fsum(scores)
        self.squares += math.fsum(score * score for score in scores)

    @property
    def mean(self) -> float:
        """Of the items' scores."""
        return self.total / self.items if self.items else math.nan

    @property
    def variance(self) -> float:
        """Of the mean."""
        if self.items < 2:
            return math.inf
        return max(0.0, self.squares / self.items - self.mean**2) / (self.items - 1)

    @property
    def error_rate(self) -> float:
        """Failures over requests."""
        return self.failures / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a canary has gone too far: beyond the live version's, and after so many requests."""

    error_rate: float = 0.02
    drift: float = 0.1
    least_requests: int = 50


@dataclass(slots=True)
class Trials:
    """Tallies by version, and what follows from them. `reject` ends a canary's trial."""

    limits: Limits
    reject: Callable[[str, Verdict], Awaitable[None]]
    tallies: dict[str, Tally] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _rejected: set[str] = field(default_factory=set)

    def tally(self, key: str) -> Tally:
        """Of a version, from now on if it has none yet."""
        return self.tallies.setdefault(key, Tally())

    def scored(self, version: ModelVersion, pointer: Pointer | None, batch: ScoredBatch) -> None:
        """A version has answered a request for its name."""
        self.tally(version.key).add([item.score for item in batch.items])
        self._judge(version, pointer)

    def failed(self, version: ModelVersion, pointer: Pointer | None, error: RungError) -> None:
        """A version could not answer. Only what is its own fault counts."""
        if isinstance(error, ModelFault):
            tally = self.tally(version.key)
            tally.requests += 1
            tally.failures += 1
            self._judge(version, pointer)

    def beside(
        self, version: ModelVersion, live: ScoredBatch, score: Callable[[], Awaitable[ScoredBatch]]
    ) -> None:
        """Score what the live version has scored, in the background, and keep the difference."""
        if len(self._tasks) < MOST_SHADOWS:
            self._begin(self._shadow(version, live, score))

    async def aclose(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _shadow(
        self, version: ModelVersion, live: ScoredBatch, score: Callable[[], Awaitable[ScoredBatch]]
    ) -> None:
        tally = self.tally(version.key)
        try:
            found = await score()
        except RungError as error:
            tally.requests += 1
            tally.failures += 1
            logger.warning("shadow %s: %s", version.key, error)
            return
        tally.add([item.score for item in found.items])
        apart = [a.score - b.score for a, b in zip(found.items, live.items, strict=True)]
        tally.difference += math.fsum(apart)
        tally.distance += math.fsum(map(abs, apart))

    def _judge(self, version: ModelVersion, pointer: Pointer | None) -> None:
        if pointer is None or pointer.canary is None or version.key in self._rejected:
            return
        name = version.manifest.name
        if version.manifest.version != pointer.canary.version:
            return
        reason = why_not(self.tally(version.key), self.tally(f"{name}@{pointer.live}"), self.limits)
        if reason is not None:
            self._rejected.add(version.key)
            logger.error("canary %s is ended: %s", version.key, reason)
            verdict = Verdict(version=version.manifest.version, passed=False, reason=reason)
            self._begin(self.reject(name, verdict))

    def _begin(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a trial failed", exc_info=error)


def why_not(canary: Tally, live: Tally, limits: Limits) -> str | None:
    """Why a canary must not go on; None while there is no reason.

    Scores drift when the means of both lie further apart than the limit, and further than
    `STANDARD_ERRORS` of their difference.
    """
    worst = live.error_rate + limits.error_rate
    if canary.failures >= LEAST_FAILURES and canary.error_rate > worst:
        return (
            f"as a canary it failed in {canary.failures} of {canary.requests} requests; at most "
            f"{worst:.1%} are allowed, {limits.error_rate:.1%} more than of the live version"
        )
    if min(canary.requests, live.requests) < limits.least_requests:
        return None
    drift = canary.mean - live.mean
    if abs(drift) > max(limits.drift, STANDARD_ERRORS * math.sqrt(canary.variance + live.variance)):
        return (
            f"as a canary its mean score was {canary.mean:.3f} over {canary.items} items, and the "
            f"live version's {live.mean:.3f}: further apart than {limits.drift:g}"
        )
    return None
