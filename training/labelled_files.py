"""Labelled responses out of files, as the PRM that learns from them reads them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prm.errors import InvalidInput
from prm.evaluation.labelled import Labelled, read_labelled
from prm.families.base import EncodedTrajectory, Family
from prm.types import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledResponse:
    """One response with its labels; `group` numbers its problem."""

    labelled: Labelled
    trajectory: Trajectory
    encoded: EncodedTrajectory
    group: int

    @property
    def text(self) -> str:
        """The problem: what was asked, or the whole chat."""
        messages = self.trajectory.messages
        return messages[0].content if len(messages) == 1 else repr(messages)


def read_responses(files: Sequence[Path], separator: str, family: Family) -> list[LabelledResponse]:
    """All of these files' responses in order.

    Raises InvalidInput, naming file and line, for one that the PRM cannot read.
    """
    numbers: dict[str, int] = {}
    found = []
    for labelled in (one for file in files for one in read_labelled(file)):
        trajectory = labelled.trajectory(separator)
        try:
            encoded = family.encode(trajectory)
        except InvalidInput as error:
            raise InvalidInput(f"{labelled.where}: {error}", param="data.files") from error
        group = numbers.setdefault(repr(trajectory.messages), len(numbers))
        found.append(
            LabelledResponse(labelled=labelled, trajectory=trajectory, encoded=encoded, group=group)
        )
    return found


def single_turns(
    responses: Sequence[LabelledResponse], count: int
) -> Iterator[tuple[str, list[str]]]:
    """Problem and steps of the first responses that ask in a single turn."""
    single = [one for one in responses if len(one.trajectory.messages) == 1]
    for one in single[:count]:
        yield one.text, [step.text for step in one.trajectory.steps]


def places_of_step(size: int, step: int, count: int, seed: int) -> list[int]:
    """Which `count` of `size` things are taken in step `step` (from 1), in passes.

    Each pass has an order of its own, which the seed and its number decide: nothing is to be kept
    for a run to go on.
    """
    found, orders = [], dict[int, list[int]]()
    for at in range((step - 1) * count, step * count):
        epoch = at // size
        if epoch not in orders:
            orders[epoch] = random.Random(f"{seed}/{epoch}/labelled").sample(range(size), size)
        found.append(orders[epoch][at % size])
    return found
