"""Labelled responses: one line of JSON each, or one per problem with its `candidates`.

    {"problem": "…", "steps": ["…"], "labels": [true, false, null], "correct": false}
    {"problem": "…", "response": "…", "first_error": 2, "correct": false}
    {"problem": "…", "candidates": [{"step_scores": [0.9, 0.2], "correct": false}, …]}

`labels` says of each step whether it is right; null: nobody knows. `first_error` is 0-based, and -1
or null where there is none (as in ProcessBench, arXiv 2412.06559): the steps before it are right,
it is wrong, and what follows it is unknown, because nobody judged it. `correct` says whether the
whole response is right: true, false, or the share of its tests that passed, which is right at 1.
`weight` is how much a response counts where a PRM learns from outcomes, 1 where it is not given.
`step_scores` are scores that were recorded earlier. Other fields are left alone. Labels of steps
are true and false and nothing else: 0 and 1 mean different things in different sets.
"""

import gzip
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from prm.errors import InvalidInput
from prm.steps import cut_steps, join_steps
from prm.types import Message, Trajectory
from prm.validation import first_problem

Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Response(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    problem: str | None = None
    messages: list[dict[str, Any]] | None = None
    steps: list[str] | None = None
    response: str | None = None
    labels: list[bool | None] | None = None
    first_error: int | None = Field(default=None, ge=-1)
    correct: bool | float | None = None
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    step_scores: list[Score] | None = Field(default=None, min_length=1)

    @field_validator("correct", mode="before")
    @classmethod
    def _is_an_outcome(cls, value: Any) -> Any:
        is_share = isinstance(value, int | float) and 0 <= value <= 1
        if value is None or isinstance(value, bool) or is_share:
            return value
        raise ValueError(f"{value!r} is no outcome: true, false, null, or a number from 0 to 1")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.problem is None) == (self.messages is None):
            raise ValueError("give either problem or messages, and not both")
        if self.labels is not None and "first_error" in self.model_fields_set:
            raise ValueError("give either labels or first_error, and not both")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A response's step scores with what is known of it; `labels` has one entry per step."""

    problem: str
    scores: tuple[float, ...]
    labels: tuple[bool | None, ...]
    is_correct: bool | None


@dataclass(frozen=True, slots=True)
class Labelled:
    """One labelled response. `where` names its place in the file, for errors."""

    where: str
    response: _Response

    def trajectory(self, separator: str) -> Trajectory:
        """The response with its steps; a text is cut at the separator. Raises InvalidInput."""
        item = self.item()
        messages = self.response.messages or [{"role": "user", "content": item["problem"]}]
        try:
            chat = tuple(Message(**message) for message in messages)
            if "steps" in item:
                response, steps = join_steps(item["steps"], separator)
            else:
                response = item["response"]
                steps = cut_steps(response, separator)
        except TypeError as error:
            raise InvalidInput(
                f"{self.where}: messages: each has role and content, and no other field"
            ) from error
        except InvalidInput as error:
            raise InvalidInput(f"{self.where}: {error}") from error
        return Trajectory(messages=chat, response=response, steps=steps, is_cut="response" in item)

    def item(self) -> dict[str, Any]:
        """What a scoring request takes. Raises InvalidInput where there is no text to score."""
        fields = {"problem", "messages", "steps", "response"}
        item = self.response.model_dump(include=fields, exclude_none=True)
        if ("steps" in item) == ("response" in item):
            raise InvalidInput(
                f"{self.where}: give either steps or response, and not both; scores recorded "
                "in step_scores are taken with --recorded"
            )
        return item

    def recorded(self) -> Scored:
        """The response with the scores that its line holds. Raises InvalidInput without any."""
        if self.response.step_scores is None:
            raise InvalidInput(f"{self.where}: holds no step_scores; leave --recorded out")
        return self.scored(self.response.step_scores)

    def scored(self, scores: Sequence[float]) -> Scored:
        """The response with these scores. Raises InvalidInput when the labels are not as many."""
        response = self.response
        problem = response.problem
        if problem is None:
            problem = json.dumps(response.messages, sort_keys=True)
        return Scored(
            problem=problem,
            scores=tuple(scores),
            labels=self.labels(len(scores)),
            is_correct=None if response.correct is None else response.correct >= 1,
        )

    def labels(self, count: int) -> tuple[bool | None, ...]:
        """One per step, of as many; None: nobody knows. Raises InvalidInput for another number."""
        labels, first_error = self.response.labels, self.response.first_error
        if labels is not None:
            if len(labels) != count:
                raise InvalidInput(f"{self.where}: {len(labels)} labels for {count} steps")
            return tuple(labels)
        if "first_error" not in self.response.model_fields_set:
            return (None,) * count
        if first_error is None or first_error == -1:
            return (True,) * count
        if first_error >= count:
            raise InvalidInput(
                f"{self.where}: first_error {first_error} of {count} steps; it is counted from 0"
            )
        return (True,) * first_error + (False,) + (None,) * (count - first_error - 1)


def read_labelled(path: Path) -> list[Labelled]:
    """The responses of a file, plain or .gz; - is standard input. Raises InvalidInput."""
    found = list(some_labelled(path, lambda fields: True))
    if not found:
        raise InvalidInput(f"{path}: holds no response")
    return found


def some_labelled(path: Path, is_wanted: Callable[[dict[str, Any]], bool]) -> Iterator[Labelled]:
    """Those of a file's responses whose fields, as they were read, are wanted."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        for place, fields in _responses(f"{path}, line {number}", line):
            if is_wanted(fields):
                yield Labelled(place, _validated(place, fields))


def read_text(path: Path) -> str:
    """A file, plain or .gz; - is standard input. Raises InvalidInput where it is no UTF-8."""
    try:
        if str(path) == "-":
            return sys.stdin.read()
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return file.read()
        return path.read_text(encoding="utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _responses(where: str, line: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A line's response, or its problem's candidates, each with its place."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InvalidInput(f"{where}: not a JSON object")
    if "candidates" not in row:
        yield where, row
        return
    if not isinstance(row["candidates"], list):
        raise InvalidInput(f"{where}: candidates: not a list")
    shared = {name: row[name] for name in ("problem", "messages") if name in row}
    for index, candidate in enumerate(row["candidates"]):
        place = f"{where}, candidates[{index}]"
        if not isinstance(candidate, dict):
            raise InvalidInput(f"{place}: not a JSON object")
        yield place, candidate | shared


def _validated(where: str, fields: dict[str, Any]) -> _Response:
    try:
        return _Response.model_validate(fields)
    except ValidationError as error:
        raise InvalidInput(f"{where}: {first_problem(error)}") from error
