"""Scores from elsewhere are believed once the version's golden scores have come out there.

The engine proves at load that it reads a version as its publisher did (`prm/engine/golden.py`). A
server that somebody else started proves it here, before its first score is handed out: another
model under the name, a `--logprobs-mode` or pooling of its own, a quantisation that goes too far.
"""

import asyncio
from collections.abc import Sequence

from prm.aggregation import AggregationName
from prm.backends.writing import VllmVerdicts
from prm.chat import ChatTokenizer
from prm.errors import CallerError, Unavailable
from prm.families import FAMILIES
from prm.families.base import Read
from prm.golden import golden_difference, golden_trajectory
from prm.manifest import ModelVersion, PrmManifest
from prm.scorer import Backend, BackendReply, ScoredBatch, Scorer
from prm.types import Trajectory
from prm.verification import Ask, Style, Written

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
            batch = await super().score([golden_trajectory(item, separator) for item in golden])
        except CallerError as error:
            raise Unavailable(f"{self.version.key}: a golden score: {error}") from error
        for number, item in enumerate(batch.items):
            _check(self.version, number, [step.raw for step in item.step_scores])


class VerifiedVerdicts:
    """A generative PRM's model on a server that must have reproduced the golden scores.

    They are those of verdicts with nothing written before them, which hang on no sampling. Computed
    as `VerifiedScorer` does: before the first work, and after any that nobody could do.
    """

    def __init__(self, version: ModelVersion, model: VllmVerdicts) -> None:
        self._version = version
        self._model = model
        self._is_verified = False
        self._verifying = asyncio.Lock()

    async def write(self, asks: Sequence[Ask], style: Style) -> list[Written]:
        """See `VerdictModel.write`. Raises Unavailable when a golden score does not come out."""
        await self._ensure()
        try:
            return await self._model.write(asks, style)
        except Unavailable:
            self._is_verified = False
            raise

    async def read(self, reads: Sequence[Read]) -> BackendReply:
        """See `VerdictModel.read`. Raises Unavailable when a golden score does not come out."""
        await self._ensure()
        try:
            return await self._model.read(reads)
        except Unavailable:
            self._is_verified = False
            raise

    async def aclose(self) -> None:
        """Close the connections that write."""
        await self._model.aclose()

    async def _ensure(self) -> None:
        async with self._verifying:
            if self._is_verified:
                return
            manifest = self._version.manifest
            assert isinstance(manifest, PrmManifest)
            tokenizer = ChatTokenizer(self._version.folder)
            family = FAMILIES[manifest.family].load(self._version, tokenizer)
            for number, golden in enumerate(manifest.golden):
                encoded = family.encode(golden_trajectory(golden, manifest.step_separator))
                outputs = (await self._model.read(encoded.reads)).outputs
                found = family.score(encoded, outputs).steps
                _check(self._version, number, [step.raw for step in found])
            self._is_verified = True


def _check(version: ModelVersion, number: int, found: Sequence[float]) -> None:
    """Raises Unavailable when these raw scores of a golden trajectory are not the golden ones."""
    difference = golden_difference(
        version, number, found, absolute=TOLERANCE, relative=RELATIVE_TOLERANCE
    )
    if difference is not None:
        raise Unavailable(
            f"the server of {version.key}: {difference}; it does not serve what was published"
        )
