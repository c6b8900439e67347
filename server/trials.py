"""New versions on real requests: a canary that is watched, and a shadow that nobody sees.

A canary that fails more often than the live version, or whose scores drift from the live version's,
is ended by itself: rejected, with the numbers as the reason.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

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


class Trials:
    """What was seen of each name's versions since its pointer last changed, and what follows.

    `reject` ends a canary's trial.
    """

    def __init__(
        self,
        limits: Limits,
        pointer_of: Callable[[str], Pointer | None],
        reject: Callable[[str, Verdict], Awaitable[None]],
    ) -> None:
        self._limits = limits
        self._pointer_of = pointer_of
        self._reject = reject
        self._seen: dict[str, tuple[Pointer, dict[str, Tally]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def tally(self, name: str, version: str) -> Tally | None:
        """Of a version that answers or is tried now; None of any other."""
        pointer = self._pointer_of(name)
        if pointer is None or version not in pointer.served:
            return None
        if name not in self._seen or self._seen[name][0] != pointer:
            self._seen[name] = pointer, {each: Tally() for each in pointer.served}
        return self._seen[name][1][version]

    def scored(self, version: ModelVersion, batch: ScoredBatch) -> None:
        """A version has answered a request; a shadow only does when it is asked for by name."""
        tally = self.tally(version.manifest.name, version.manifest.version)
        if tally is not None and not self._is_shadow(version):
            tally.add([item.score for item in batch.items])
            self._judge(version)

    def failed(self, version: ModelVersion, error: RungError) -> None:
        """A version could not answer. Only what is its own fault counts."""
        tally = self.tally(version.manifest.name, version.manifest.version)
        if tally is not None and isinstance(error, ModelFault):
            tally.requests += 1
            tally.failures += 1
            self._judge(version)

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
        try:
            found = await score()
        except RungError as error:
            logger.warning("shadow %s: %s", version.key, error)
            self.failed(version, error)
            return
        tally = self.tally(version.manifest.name, version.manifest.version)
        if tally is None:
            return
        tally.add([item.score for item in found.items])
        apart = [a.score - b.score for a, b in zip(found.items, live.items, strict=True)]
        tally.difference += math.fsum(apart)
        tally.distance += math.fsum(map(abs, apart))

    def _is_shadow(self, version: ModelVersion) -> bool:
        pointer = self._pointer_of(version.manifest.name)
        return pointer is not None and pointer.state_of(version.manifest.version) == "shadow"

    def _judge(self, version: ModelVersion) -> None:
        name, version_id = version.manifest.name, version.manifest.version
        pointer, tallies = self._seen[name]
        if pointer.canary is None or version_id != pointer.canary.version:
            return
        reason = why_not(tallies[version_id], tallies[pointer.live], self._limits)
        if reason is not None:
            # Once, also while the pointer is being changed.
            tallies[version_id] = Tally()
            logger.error("canary %s is ended: %s", version.key, reason)
            verdict = Verdict(version=version_id, passed=False, reason=reason)
            self._begin(self._reject(name, verdict))

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
