"""Recorded candidates: a JSONL line per problem, every candidate with its step scores and label.

    {"problem": "…", "candidates": [{"step_scores": [0.9, 0.2], "extracted": "42", "correct": true,
                                     "tokens": 211}, …]}

`extracted` is the final answer, null for none; equal strings are one answer. What a candidate cost
is its `tokens`; where a file has none, the characters of its `completion`, and where it has neither
each costs 1. Other fields are left alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prm.errors import InvalidInput
from prm.evaluation.labelled import Score, read_text
from prm.validation import first_problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Unit = Literal["tokens", "characters", "candidates"]


class _Candidate(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    step_scores: list[Score] = Field(min_length=1)
    extracted: str | None
    correct: bool
    tokens: Annotated[int, Field(ge=1)] | None = None
    completion: str | None = None

    def costs(self) -> Mapping[Unit, float]:
        known: dict[Unit, float] = {"candidates": 1.0}
        if self.completion:
            known["characters"] = float(len(self.completion))
        if self.tokens is not None:
            known["tokens"] = float(self.tokens)
        return known


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    problem: str
    candidates: list[_Candidate] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolProblem:
    """One problem's candidates in recorded order; every array has one entry per candidate.

    `groups` is the class of the answer, -1 without one; `costs` is in the pool's unit.
    """

    text: str
    scores: tuple[tuple[float, ...], ...]
    groups: Ints
    is_right: Bools
    costs: Floats

    def __len__(self) -> int:
        return len(self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """All problems of a file, and what `costs` counts."""

    problems: tuple[PoolProblem, ...]
    unit: Unit

    @property
    def widest(self) -> int:
        """The most candidates that a problem has."""
        return max(map(len, self.problems))


def read_pool(path: Path) -> Pool:
    """A file, plain or .gz; - is standard input. Raises InvalidInput naming the line and field."""
    rows: list[_Row] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            rows.append(_row(f"{path}, line {number}", line))
    if len(rows) < 2:
        raise InvalidInput(f"{path}: {len(rows)} problems; cross-validation takes at least two")
    names = [row.problem for row in rows]
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise InvalidInput(
            f"{path}: two lines are about the problem {twice[:60]!r}; put all candidates of a "
            "problem on one line"
        )
    costs = [candidate.costs() for row in rows for candidate in row.candidates]
    order: Sequence[Unit] = ("tokens", "characters", "candidates")
    unit = next(unit for unit in order if all(unit in each for each in costs))
    return Pool(problems=tuple(_problem(row, unit) for row in rows), unit=unit)


def _row(where: str, line: str) -> _Row:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: not JSON: {error}") from error
    try:
        return _Row.model_validate(fields)
    except ValidationError as error:
        raise InvalidInput(f"{where}: {first_problem(error)}") from error


def _problem(row: _Row, unit: Unit) -> PoolProblem:
    classes: dict[str, int] = {}
    groups = [
        -1 if c.extracted is None else classes.setdefault(c.extracted, len(classes))
        for c in row.candidates
    ]
    return PoolProblem(
        text=row.problem,
        scores=tuple(tuple(candidate.step_scores) for candidate in row.candidates),
        groups=np.array(groups, dtype=np.int64),
        is_right=np.array([candidate.correct for candidate in row.candidates]),
        costs=np.array([candidate.costs()[unit] for candidate in row.candidates]),
    )
