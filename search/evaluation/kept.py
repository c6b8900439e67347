"""Outcomes on disk: a measurement that was broken off goes on, and a new strategy joins the others.

A line of JSON per strategy and width, with what all its figures hang on:

    {"about": {"policy": …, "prm": …, "problems": …, "sampling": {…}}, "strategy": {…},
     "wall_s": 12.5, "outcomes": [[true, false, 0.5, 560, 1805], …]}

Lines about anything else (another seed, other problems or weights) may stand in the same file.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from prm.errors import InvalidInput
from prm.validation import first_problem
from search.evaluation.arms import Arm
from search.evaluation.problems import LabelledProblem
from search.evaluation.runs import ArmRun, Outcome


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    about: dict[str, JsonValue]
    strategy: dict[str, JsonValue]
    wall_s: float
    outcomes: tuple[tuple[bool, bool, float, int, int], ...]


class KeptOutcomes:
    """A file of outcomes, of which those `about` the same are taken.

    Raises InvalidInput naming the line that is none of them.
    """

    def __init__(self, path: Path, about: Mapping[str, JsonValue]) -> None:
        self._path = path
        self._about = dict(about)
        self._lines = [line for line in _read(path) if line.about == self._about]

    def of(self, arm: Arm) -> ArmRun | None:
        """What was measured of this arm; None where nothing was."""
        for line in self._lines:
            if line.strategy == arm.settings:
                outcomes = [_outcome(*row) for row in line.outcomes]
                return ArmRun(arm=arm, outcomes=outcomes, wall_s=line.wall_s)
        return None

    def add(self, run: ArmRun) -> None:
        """Keep one more."""
        line = _Line(
            about=self._about,
            strategy=dict(run.arm.settings),
            wall_s=run.wall_s,
            outcomes=tuple(astuple(outcome) for outcome in run.outcomes),
        )
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line.model_dump_json() + "\n")


def digest_of(problems: Sequence[LabelledProblem]) -> str:
    """Changes with any question or answer, or their order."""
    text = json.dumps([[problem.question, problem.answer] for problem in problems])
    return hashlib.sha256(text.encode()).hexdigest()


def _outcome(
    is_correct: bool, is_undecided: bool, right_share: float, generated: int, read: int
) -> Outcome:
    return Outcome(
        is_correct=is_correct,
        is_undecided=is_undecided,
        right_share=right_share,
        generated_tokens=generated,
        read_tokens=read,
    )


def _read(path: Path) -> list[_Line]:
    if not path.exists():
        return []
    found = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--outcomes {path}: cannot be read as UTF-8 text: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found.append(_Line.model_validate_json(line))
            except ValidationError as error:
                raise InvalidInput(
                    f"--outcomes {path}, line {number}: {first_problem(error)}; remove the line"
                ) from error
    return found
