"""Problems out of a data set: with answers, or with tests.

{"question": "…", "answer": "Natalia sold … #### 72"}      the answer is 72
{"problem": "…", "solution": "… \\boxed{42}."}             the answer is 42
{"text": "…", "test_list": ["assert f(1) == 2"]}           graded by running the tests
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from prm.errors import InvalidInput
from search.answers.extraction import last_boxed
from training.datasets.code_columns import BadTests, code_tests_of, shown_tests
from training.datasets.columns import Columns, known_names
from training.datasets.rows import Row, read_rows
from training.types import Problem

# GSM8K's mark before the final answer.
_MARK = "####"
# ASDiv's "9 (apples)": nobody is to write the unit.
_AMOUNT = re.compile(r"([-+]?[0-9][0-9.,/]*) \([^()]*\)")
_LEVEL = re.compile(r"(?:level\s*)?([0-9]+(?:\.[0-9]+)?)", re.IGNORECASE)
_NAMED_LINES = 10


class DatasetSettings(BaseModel):
    """One data set. Paths are files or folders (`rows.py`), columns found by name where not named.

    `missing` and `duplicates`: "error" names the lines; "drop" leaves them out, and
    `Loaded.dropped` says which. A duplicate is a row whose id stood before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["file"] = "file"
    path: Path
    split: str = Field(default="train", min_length=1)
    columns: Columns = Columns()
    missing: Literal["error", "drop"] = "error"
    duplicates: Literal["error", "drop"] = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The problems in the file's order, and where those stood that were left out, by reason.

    `pass_rates` are those that the file gives, by place; None where it gives none.
    """

    problems: tuple[Problem, ...]
    pass_rates: tuple[float | None, ...]
    dropped: dict[str, tuple[str, ...]]


def load_problems(settings: DatasetSettings) -> Loaded:
    """All problems of a data set.

    Raises InvalidInput that names file, line, field and remedy for what cannot be used: no rows, no
    answer, a wrong type, an id that stood before.
    """
    problems: list[Problem] = []
    rates: list[float | None] = []
    missing: list[str] = []
    duplicates: list[str] = []
    first_of: dict[str, str] = {}
    for row in read_rows(settings.path, settings.split):
        problem = _problem(row, settings.columns)
        if problem is None:
            missing.append(row.where)
        elif problem.id is not None and problem.id in first_of:
            duplicates.append(f"{row.where} (id {problem.id!r}, first in {first_of[problem.id]})")
        else:
            if problem.id is not None:
                first_of[problem.id] = row.where
            problems.append(problem)
            rates.append(_pass_rate(row, settings.columns))
    _refuse(missing, settings.missing, "have no answer", 'fill it in, or set missing = "drop"',
            "columns.answer")  # fmt: skip
    _refuse(duplicates, settings.duplicates, "have an id that stood before",
            'make ids unique, name another column in columns.id, or set duplicates = "drop"',
            "columns.id")  # fmt: skip
    if not problems:
        raise InvalidInput(
            f"{settings.path}: holds no problem{' with an answer' if missing else ''}; a row is an "
            'object such as {"problem": "2+2?", "answer": "4"}',
            param="path",
        )
    dropped = {"missing": tuple(missing), "duplicates": tuple(duplicates)}
    return Loaded(problems=tuple(problems), pass_rates=tuple(rates), dropped=dropped)


def _refuse(places: Sequence[str], rule: str, what: str, remedy: str, param: str) -> None:
    if not places or rule == "drop":
        return
    named = "; ".join(places[:_NAMED_LINES])
    more = f"; and {len(places) - _NAMED_LINES} more" if len(places) > _NAMED_LINES else ""
    raise InvalidInput(f"{len(places)} rows {what}: {named}{more}. {remedy}", param=param)


def _problem(row: Row, columns: Columns) -> Problem | None:
    """The row's problem; None where its answer is missing."""
    text = _question(row, columns)
    level, name = _level(row, columns), _id(row, columns)
    try:
        tests = code_tests_of(row.values) if columns.answer is None else None
    except BadTests as error:
        raise InvalidInput(f"{row.where}: {error}", param="tests") from error
    if tests is not None:
        return Problem(text=text + shown_tests(tests), tests=tests, id=name, level=level)
    answer = _answer(row, columns)
    if answer is None:
        return None
    return Problem(text=text, answer=answer, id=name, level=level)


def _question(row: Row, columns: Columns) -> str:
    name = columns.name_of("problem", row.values)
    if name is None:
        raise InvalidInput(
            f"{row.where}: no column holds the problem; none of {known_names('problem')} is among "
            f"{', '.join(row.values) or 'no columns'}: name it in columns.problem",
            param="columns.problem",
        )
    parts = [columns.value_of("context", row.values), columns.value_of("problem", row.values)]
    texts = [_text(part, row, name) for part in parts if part is not None]
    if not texts or not texts[-1].strip():
        raise InvalidInput(
            f"{row.where}: {name} is empty; give the problem, or leave the row out",
            param="columns.problem",
        )
    options = columns.value_of("options", row.values)
    lines = [str(option) for option in options] if isinstance(options, list) else [options]
    return "\n".join([" ".join(texts), *(line for line in lines if isinstance(line, str))])


def _text(value: Any, row: Row, name: str) -> str:
    """A text, or the chat of one user's turn that some data sets write in its place."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        content = value[0].get("content")
        if isinstance(content, str) and value[0].get("role") == "user":
            return content
    raise InvalidInput(
        f"{row.where}: {name}: a text is wanted, or a chat of one user turn, and this is a "
        f"{type(value).__name__}; name another column in columns.problem",
        param="columns.problem",
    )


def _answer(row: Row, columns: Columns) -> str | None:
    name = columns.name_of("answer", row.values)
    if name is None:
        raise InvalidInput(
            f"{row.where}: no column holds the answer; none of {known_names('answer')}, and no "
            f"tests, are among {', '.join(row.values)}: name it in columns.answer",
            param="columns.answer",
        )
    value = columns.value_of("answer", row.values)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidInput(
            f"{row.where}: {name}: a text or a number is wanted, and this is a "
            f"{type(value).__name__}; name another column in columns.answer",
            param="columns.answer",
        )
    text = str(value)
    if _MARK in text:
        return text.rpartition(_MARK)[2].strip() or None
    if name.lower() == "solution":
        return last_boxed(text) or None
    amount = _AMOUNT.fullmatch(text.strip())
    return amount[1] if amount else text.strip()


def _id(row: Row, columns: Columns) -> str | None:
    value = columns.value_of("id", row.values)
    return None if value is None else str(value)


def _level(row: Row, columns: Columns) -> float | None:
    """A number, or the number in a text such as Level 3."""
    value = columns.value_of("level", row.values)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _LEVEL.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None and columns.level is not None:
        raise InvalidInput(
            f"{row.where}: {columns.level}: a number is wanted, or a text such as Level 3, and "
            f"this is {value!r}; name another column in columns.level",
            param="columns.level",
        )
    return float(match[1]) if match else None


def _pass_rate(row: Row, columns: Columns) -> float | None:
    value = columns.value_of("pass_rate", row.values)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidInput(
            f"{row.where}: {columns.name_of('pass_rate', row.values)}: a share from 0 to 1 is "
            f"wanted, and this is {value!r}",
            param="columns.pass_rate",
        )
    return float(value)
