"""What families do alike once they are bound to a version: lengths, and reads of a head."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput
from prm.families.base import (
    EncodedTrajectory,
    FamilyScores,
    HeadRead,
    R,
    ReadOutput,
    step_score,
)
from prm.manifest import ModelVersion


class BoundFamily(Generic[R]):
    """A version and the recipe that it is read by.

    `context_limit` is the most tokens of an item: what the model can read and was trained to read.
    """

    def __init__(self, version: ModelVersion, recipe: R, tokenizer: ChatTokenizer) -> None:
        self.recipe = recipe
        self.context_limit = min(
            version.context_limit, recipe.context_limit or version.context_limit
        )
        self._model = version.key
        self._tokenizer = tokenizer

    def check_length(self, length: int, about: str = "") -> None:
        """Raises InvalidInput for an item of too many tokens: nothing is ever cut off."""
        if length > self.context_limit:
            raise InvalidInput(
                f"the item is {about}{length} tokens long, and {self._model} reads at most "
                f"{self.context_limit}; send fewer or shorter steps"
            )

    def _check_least(self, *texts: str) -> None:
        """The same before these texts are tokenised, where they surely have too many."""
        self.check_length(self._tokenizer.least_tokens(*texts), "at least ")


class HeadFamily(BoundFamily[R], ABC):
    """A family whose step scores come, one each, of what a head says at one position.

    The head is the checkpoint's own, or the vocabulary's at a few labels.
    """

    @abstractmethod
    def raw(self, outputs: Sequence[float]) -> float:
        """A step's logit, of all that the head says at the step's position."""

    def score(self, encoded: EncodedTrajectory, outputs: Sequence[ReadOutput]) -> FamilyScores:
        """See `Family.score`."""
        rows = [
            output.values[start : start + read.width]
            for read, output in zip(encoded.reads, outputs, strict=True)
            for start in range(0, len(output.values), read.width)
        ]
        return FamilyScores(steps=tuple(step_score(self.raw(row)) for row in rows))

    def _read_at(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        *,
        width: int,
        labels: tuple[int, ...] = (),
    ) -> EncodedTrajectory:
        """One read, at every step's position; tokens after the last one are not read."""
        read = HeadRead(
            model=self._model,
            ids=tuple(ids[: positions[-1] + 1]),
            positions=tuple(positions),
            width=width,
            labels=labels,
        )
        self.check_length(len(read.ids))
        return EncodedTrajectory(
            ids=read.ids, reads=(read,), step_values=tuple(range(1, len(positions) + 1))
        )

    def _read_apart(self, reads: Sequence[HeadRead]) -> EncodedTrajectory:
        """A read per step, each of one position; the last one's ids are the longest."""
        return EncodedTrajectory(
            ids=reads[-1].ids, reads=tuple(reads), step_values=(1,) * len(reads)
        )
