"""Scores from elsewhere are believed once the version's golden scores have come out there.

The engine proves at load that it reads a version as its publisher did (`prm/engine/golden.py`). A
server that somebody else started proves it here, before its first answer is handed out: another
model under the name, a `--logprobs-mode` or pooling of its own, a quantisation that goes too far.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from prm.chat import ChatTokenizer
from prm.errors import CallerError, Unavailable
from prm.families import FAMILIES
from prm.families.base import EncodedTrajectory, Family, Read
from prm.golden import golden_difference, golden_trajectory
from prm.manifest import ModelVersion, PrmManifest
from prm.scorer import Backend, BackendReply
from prm.tasks import all_or_none
from prm.verification import Ask, Style, VerdictModel, Written

# A server does not say in which precision it computes, so bfloat16's errors are allowed: those of
# `TOLERANCE_LOWER` in prm/engine/golden.py. A wrong read differs by whole units.
TOLERANCE = 0.25
RELATIVE_TOLERANCE = 0.02


class GoldenGate:
    """A version's backend that answers nobody until the golden scores have come out of it.

    They are computed with the first request, once for all that wait, and again after a request that
    nobody could answer: what comes back may be another server.
    """

    def __init__(self, version: ModelVersion, backend: Backend) -> None:
        """`backend` reads the version's models. Asks it nothing yet."""
        self._version = version
        self._backend = backend
        self._check: asyncio.Task[None] | None = None

    async def read(self, reads: Sequence[Read]) -> BackendReply:
        """See `Backend.read`. Raises Unavailable when a golden score does not come out."""
        async with self._passed():
            return await self._backend.read(reads)

    @asynccontextmanager
    async def _passed(self) -> AsyncIterator[None]:
        """Around work on the backend. Raises Unavailable when a golden score does not come out."""
        if self._check is None:
            self._check = asyncio.create_task(self._reproduce())
            # Whoever waits gets the error; when nobody does, nobody need hear of it.
            self._check.add_done_callback(lambda task: task.cancelled() or task.exception())
        check = self._check
        try:
            # A caller who leaves does not end it for the others.
            await asyncio.shield(check)
            yield
        except Unavailable:
            if self._check is check:
                self._check = None
            raise

    async def _reproduce(self) -> None:
        """Raises Unavailable unless every golden score comes out."""
        try:
            family, golden = await asyncio.to_thread(self._encoded)
            replies = await all_or_none([self._backend.read(item.reads) for item in golden])
        except CallerError as error:
            raise Unavailable(f"{self._version.key}: a golden score: {error}") from error
        for number, (item, reply) in enumerate(zip(golden, replies, strict=True)):
            found = [step.raw for step in family.score(item, reply.outputs).steps]
            difference = golden_difference(
                self._version, number, found, absolute=TOLERANCE, relative=RELATIVE_TOLERANCE
            )
            if difference is not None:
                raise Unavailable(
                    f"the server of {self._version.key}: {difference}; it does not serve what was "
                    "published"
                )

    def _encoded(self) -> tuple[Family, list[EncodedTrajectory]]:
        """The version's family, and the golden trajectories that it encodes."""
        manifest = self._version.manifest
        assert isinstance(manifest, PrmManifest)
        family = FAMILIES[manifest.family].load(self._version, ChatTokenizer(self._version.folder))
        golden = [golden_trajectory(item, manifest.step_separator) for item in manifest.golden]
        return family, [family.encode(trajectory) for trajectory in golden]


class VerdictGate(GoldenGate):
    """The same before a generative PRM's model, which also writes.

    Its golden scores are those of verdicts with nothing written before them: see
    `VerdictFamily.silent`.
    """

    def __init__(self, version: ModelVersion, model: VerdictModel) -> None:
        super().__init__(version, model)
        self._model = model

    async def write(self, asks: Sequence[Ask], style: Style) -> list[Written]:
        """See `VerdictModel.write`. Raises Unavailable when a golden score does not come out."""
        async with self._passed():
            return await self._model.write(asks, style)
