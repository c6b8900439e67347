"""Scores from elsewhere are believed once the version's golden scores have come out there.

The engine proves at load that it reads a version as its publisher did (`prm/engine/golden.py`). A
server that somebody else started proves it here, before its first score is handed out: another
model under the name, a `--logprobs-mode` or pooling of its own, a quantisation that goes too far.
"""

import asyncio
from collections.abc import Sequence

from prm.aggregation import AggregationName
from prm.errors import CallerError, Unavailable
from prm.manifest import GoldenScore, ModelVersion
from prm.scorer import Backend, ScoredBatch, Scorer
from prm.steps import join_steps
from prm.types import Trajectory

# A server does not say in which precision it computes, so bfloat16's errors are allowed: those of
# `TOLERANCE_LOWER` in prm/engine/golden.py. A wrong read differs by whole units.
TOLERANCE = 0.25
RELATIVE_TOLERANCE = 0.02


class VerifiedScorer(Scorer):
    """A scorer whose backend must have reproduced the golden scores; see `Scorer`.

    They are computed with the first request, once for all that wait, and again after a request that
    nobody could answer: what comes back may be another server.
    """

    def __init__(self, version: ModelVersion, backend: Backend) -> None:
        super().__init__(version, backend)
        self._verification: asyncio.Task[None] | None = None
        # A copy that reads otherwise (`as_published`) believes what this one has proven.
        self._origin = self

    async def score(
        self, trajectories: Sequence[Trajectory], *, aggregation: AggregationName | None = None
    ) -> ScoredBatch:
        """See `Scorer.score`. Raises Unavailable when a golden score does not come out."""
        origin = self._origin
        if origin._verification is None:
            origin._verification = asyncio.create_task(origin._verify())
            # Whoever waits gets the error; when nobody does, nobody need hear of it.
            origin._verification.add_done_callback(
                lambda task: task.cancelled() or task.exception()
            )
        verification = origin._verification
        try:
            # A caller who leaves does not end it for the others.
            await asyncio.shield(verification)
            return await super().score(trajectories, aggregation=aggregation)
        except Unavailable:
            if origin._verification is verification:
                origin._verification = None
            raise

    async def _verify(self) -> None:
        golden = self.manifest.golden
        separator = self.manifest.step_separator
        try:
            batch = await super().score([_trajectory(item, separator) for item in golden])
        except CallerError as error:
            raise Unavailable(f"{self.version.key}: a golden score: {error}") from error
        # Raw values of an implicit PRM are β times a log-ratio, and so are their errors.
        tolerance = TOLERANCE * min(1.0, float(self.manifest.recipe.get("beta", 1.0)))
        for number, (item, scored) in enumerate(zip(golden, batch.items, strict=True)):
            for ours, theirs in zip(scored.step_scores, item.raw, strict=True):
                # Written so that NaN is refused too.
                if not abs(ours.raw - theirs) <= tolerance + RELATIVE_TOLERANCE * abs(theirs):
                    raise Unavailable(
                        f"golden score {number} of {self.version.key} is {theirs:.4f}, and its "
                        f"server computes {ours.raw:.4f}: it does not serve what was published"
                    )


def _trajectory(golden: GoldenScore, separator: str) -> Trajectory:
    response, steps = join_steps(golden.steps, separator)
    return Trajectory(messages=golden.messages, response=response, steps=steps)
