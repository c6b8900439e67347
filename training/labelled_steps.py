"""Step labels out of files: responses that somebody judged step by step."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from prm.errors import InvalidInput
from prm.evaluation.labelled import Labelled, read_labelled
from prm.families.base import Family
from training.credit.steps import Judged


class LabelledSteps:
    """The responses of these files as their PRM reads them, in passes, each in another order."""

    def __init__(self, files: Sequence[Path], separator: str, family: Family, seed: int) -> None:
        """Raises InvalidInput, naming file and line, for a response that cannot be read."""
        self.responses = [labelled for file in files for labelled in read_labelled(file)]
        numbers: dict[str, int] = {}
        self.judged = [_judged(labelled, separator, family, numbers) for labelled in self.responses]
        self._separator = separator
        self._seed = seed
        if not any(label is not None for item in self.judged for label in item.labels):
            raise InvalidInput(
                f"{', '.join(map(str, files))}: no step has a label; give labels, or first_error",
                param="data.files",
            )

    def draw(self, step: int, count: int) -> list[Judged]:
        """The responses of step `step` (from 1)."""
        places = range((step - 1) * count, step * count)
        return [self.judged[self._order(at // len(self.judged))[at % len(self.judged)]]
                for at in places]  # fmt: skip

    def texts(self, count: int) -> Iterator[tuple[str, list[str]]]:
        """Problem and steps of the first responses that ask in a single turn."""
        found = 0
        for labelled in self.responses:
            trajectory = labelled.trajectory(self._separator)
            if found < count and len(trajectory.messages) == 1:
                found += 1
                yield trajectory.messages[0].content, [step.text for step in trajectory.steps]

    def _order(self, epoch: int) -> list[int]:
        size = len(self.judged)
        return random.Random(f"{self._seed}/{epoch}/labelled").sample(range(size), size)


def _judged(labelled: Labelled, separator: str, family: Family, numbers: dict[str, int]) -> Judged:
    trajectory = labelled.trajectory(separator)
    try:
        encoded = family.encode(trajectory)
    except InvalidInput as error:
        raise InvalidInput(f"{labelled.where}: {error}", param="data.files") from error
    labels = labelled.labels(len(trajectory.steps))
    first_error, is_known = _first_error(labels)
    correct = labelled.response.correct
    problem = repr(trajectory.messages)
    return Judged(
        encoded=encoded,
        labels=tuple(None if label is None else float(label) for label in labels),
        group=numbers.setdefault(problem, len(numbers)),
        reward=None if correct is None else float(correct),
        first_error=first_error,
        knows_first_error=is_known,
    )


def _first_error(labels: Sequence[bool | None]) -> tuple[int | None, bool]:
    """The first wrong step, and whether that is known: all steps before it were judged."""
    for index, label in enumerate(labels):
        if label is None:
            return None, False
        if not label:
            return index, True
    return None, True
