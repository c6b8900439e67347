"""One read of a head at every step's position: a head of the checkpoint's own, or two labels."""

from collections.abc import Sequence

from prm.families.base import (
    EncodedTrajectory,
    FamilyScores,
    HeadRead,
    ReadOutput,
    step_score,
)


def one_read(
    model: str,
    ids: Sequence[int],
    positions: Sequence[int],
    *,
    width: int,
    labels: tuple[int, ...] = (),
) -> EncodedTrajectory:
    """What the head says at each step's position; tokens after the last one are not read."""
    read = HeadRead(
        model=model,
        ids=tuple(ids[: positions[-1] + 1]),
        positions=tuple(positions),
        width=width,
        labels=labels,
    )
    return EncodedTrajectory(
        ids=read.ids, reads=(read,), step_values=tuple(range(1, len(positions) + 1))
    )


def rows(outputs: Sequence[ReadOutput], *, width: int) -> list[tuple[float, ...]]:
    """The head's outputs at each position of the only read."""
    (output,) = outputs
    return list(zip(*(output.values[place::width] for place in range(width)), strict=True))


def label_scores(outputs: Sequence[ReadOutput]) -> FamilyScores:
    """Softmax over a good and a bad label, in this order, at each position of the only read."""
    return FamilyScores(steps=tuple(step_score(good - bad) for good, bad in rows(outputs, width=2)))
