"""Problems with their right answers: one line of JSON each.

    {"problem": "Evaluate (3+4)*2-5", "answer": "9"}

The chat may stand in `messages` in the place of `problem`. Other fields are left alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prm.errors import InvalidInput
from prm.evaluation.labelled import read_text
from prm.validation import first_problem


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    role: Literal["system", "user", "assistant"]
    content: str


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    problem: str | None = Field(default=None, min_length=1)
    messages: tuple[_Message, ...] | None = Field(default=None, min_length=1)
    answer: str = Field(min_length=1)

    @model_validator(mode="after")
    def _has_one_question(self) -> Self:
        if (self.problem is None) == (self.messages is None):
            raise ValueError("give either problem or messages, and not both")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledProblem:
    """One problem. `where` names its place in the file, `question` is of a search request."""

    where: str
    question: dict[str, object]
    answer: str


def read_problems(path: Path, limit: int | None = None) -> list[LabelledProblem]:
    """The first `limit` problems of a file, plain or .gz; - is standard input.

    Raises InvalidInput naming the line that is none.
    """
    found: list[LabelledProblem] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if len(found) == limit:
            break
        if line.strip():
            found.append(_problem(f"{path}, line {number}", line))
    if not found:
        raise InvalidInput(f"{path}: holds no problem")
    return found


def _problem(where: str, line: str) -> LabelledProblem:
    try:
        fields = _Line.model_validate_json(line)
    except ValidationError as error:
        raise InvalidInput(f"{where}: {first_problem(error)}") from error
    question = fields.model_dump(include={"problem", "messages"}, exclude_none=True)
    return LabelledProblem(where=where, question=question, answer=fields.answer)
