"""Step labels out of files: responses that somebody judged step by step."""

from collections.abc import Sequence
from pathlib import Path

from prm.errors import InvalidInput
from prm.families.base import Family
from training.credit.steps import Judged
from training.labelled_files import (
    LabelledResponse,
    places_of_step,
    read_responses,
    single_turns,
)


class LabelledSteps:
    """The responses of these files as their PRM reads them, in passes, each in another order."""

    def __init__(self, files: Sequence[Path], separator: str, family: Family, seed: int) -> None:
        """Raises InvalidInput, naming file and line, for a response that cannot be read."""
        self.responses = read_responses(files, separator, family)
        self.judged = [judged_of(response) for response in self.responses]
        self._seed = seed
        if not any(label is not None for item in self.judged for label in item.labels):
            raise InvalidInput(
                f"{', '.join(map(str, files))}: no step has a label; give labels, or first_error",
                param="data.files",
            )

    def draw(self, step: int, count: int) -> list[Judged]:
        """The responses of step `step` (from 1)."""
        places = places_of_step(len(self.judged), step, count, self._seed)
        return [self.judged[place] for place in places]

    def texts(self, count: int) -> list[tuple[str, list[str]]]:
        """See `single_turns`."""
        return list(single_turns(self.responses, count))


def judged_of(response: LabelledResponse) -> Judged:
    """A response with the labels of its steps. Raises InvalidInput when they are not as many."""
    labels = response.labelled.labels(len(response.trajectory.steps))
    first_error, is_known = _first_error(labels)
    correct = response.labelled.response.correct
    return Judged(
        encoded=response.encoded,
        labels=tuple(None if label is None else float(label) for label in labels),
        group=response.group,
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
