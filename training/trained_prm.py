"""A PRM in training, scored as it will be served: its family encodes, and maps what comes back."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prm.errors import InvalidInput
from prm.families.base import EncodedTrajectory, Family, HeadRead, LogprobRead, Read, ReadOutput
from prm.steps import join_steps
from prm.types import Message, Trajectory
from training.data import Example
from training.heads import TrainedHead
from training.models import TrainedLM
from training.served import PRM

# Tokens of one forward.
_MICRO_TOKENS = 16_384


class TrainedPrm:
    """The trainer's own weights behind the family that will read them."""

    def __init__(
        self,
        family: Family,
        model: TrainedLM | TrainedHead,
        reference: TrainedLM | None,
        separator: str,
    ) -> None:
        """`separator` stands between steps that are given one by one."""
        self.family = family
        self._separator = separator
        self._model = model
        self._reference = reference

    def encode(self, trajectory: Trajectory) -> EncodedTrajectory | None:
        """What the family makes of it; None where it cannot be read."""
        try:
            return self.family.encode(trajectory)
        except InvalidInput:
            return None

    def raw(self, trajectories: Sequence[Trajectory | None]) -> list[list[float]]:
        """Raw scores of each one's steps; the worst where there is no step, or it is unreadable."""
        encoded = [None if item is None else self.encode(item) for item in trajectories]
        found = iter(self.raw_of([item for item in encoded if item is not None]))
        return [[-float("inf")] if item is None else next(found) for item in encoded]

    def raw_of_steps(self, problem: str, steps: Sequence[str]) -> list[float] | None:
        """Raw scores of given steps, joined as a caller's are; None where it cannot read them."""
        try:
            response, placed = join_steps(steps, self._separator)
        except InvalidInput:
            return None
        messages = (Message(role="user", content=problem),)
        encoded = self.encode(Trajectory(messages=messages, response=response, steps=placed))
        return None if encoded is None else self.raw_of([encoded])[0]

    @torch.no_grad()
    def raw_of(self, encoded: Sequence[EncodedTrajectory]) -> list[list[float]]:
        """Raw scores of the steps of what was encoded."""
        scores = []
        for piece in pieces(encoded):
            columns = [self._read(reads) for reads in zip(*(e.reads for e in piece), strict=True)]
            for item, outputs in zip(piece, zip(*columns, strict=True), strict=True):
                scores.append([step.raw for step in self.family.score(item, outputs).steps])
        return scores

    def _read(self, reads: Sequence[Read]) -> list[ReadOutput]:
        """One read of each trajectory, all of the same model."""
        rows: Sequence[Tensor]
        if isinstance(reads[0], HeadRead):
            assert isinstance(self._model, TrainedHead)
            items = [(read.ids, read.positions) for read in reads if isinstance(read, HeadRead)]
            values = self._model.steps(items).flatten()
            sizes = [len(positions) * self._model.outputs for _, positions in items]
            rows = torch.split(values, sizes)
        else:
            asked = [read for read in reads if isinstance(read, LogprobRead)]
            examples = [Example(ids=read.ids, first=read.first) for read in asked]
            model = self._model if reads[0].model.startswith(f"{PRM}@") else self._reference
            assert model is not None, f"{reads[0].model} is read, and there is none"
            if isinstance(model, TrainedHead):
                table = model.actions(examples)
            else:
                table = model.logprobs(examples)
            rows = [row[: len(e.ids) - e.first] for row, e in zip(table, examples, strict=True)]
        return [ReadOutput(values=tuple(row.tolist())) for row in rows]


def pieces(
    encoded: Sequence[EncodedTrajectory], most_tokens: int = _MICRO_TOKENS
) -> Iterator[list[EncodedTrajectory]]:
    """These in pieces of at most so many tokens, in order; a longer one is a piece."""
    piece: list[EncodedTrajectory] = []
    tokens = 0
    for item in encoded:
        if piece and tokens + len(item.ids) > most_tokens:
            yield piece
            piece, tokens = [], 0
        piece.append(item)
        tokens += len(item.ids)
    if piece:
        yield piece
