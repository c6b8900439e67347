"""Which column holds what: named by the job, or found by the names that data sets give them.

Names are tried without regard to case; a dot goes into an object, as in `reward_model.ground_truth`
(verl's layout).
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

_NAMES: dict[str, tuple[str, ...]] = {
    "problem": ("problem", "question", "prompt", "text", "instruction", "description", "query"),
    "context": ("body", "context"),
    "options": ("options", "choices"),
    "answer": (
        "answer", "final_answer", "expected_answer", "ground_truth", "reward_model.ground_truth",
        "target", "correct", "solution",
    ),
    "id": ("id", "unique_id", "task_id", "problem_id"),
    "level": ("level", "difficulty"),
    "pass_rate": ("pass_rate", "solve_rate"),
}  # fmt: skip
Role = Literal["problem", "context", "options", "answer", "id", "level", "pass_rate"]


class Columns(BaseModel):
    """The name of each column; None: found by its name, or not there.

    `context` stands before the problem, `options` behind it, a line each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    problem: str | None = None
    context: str | None = None
    options: str | None = None
    answer: str | None = None
    id: str | None = None
    level: str | None = None
    pass_rate: str | None = None

    def name_of(self, role: Role, values: Mapping[str, Any]) -> str | None:
        """The name of this role's column in a row: as set, else the first known one that is there.

        >>> Columns().name_of("problem", {"Question": "2+2?", "Answer": 4})
        'Question'
        """
        named: str | None = getattr(self, role)
        if named is not None:
            return named
        by_lower = {name.lower(): name for name in values}
        for candidate in _NAMES[role]:
            head, _, rest = candidate.partition(".")
            if head not in by_lower:
                continue
            inner = values[by_lower[head]]
            if not rest:
                return by_lower[head]
            if isinstance(inner, dict) and rest in inner:
                return f"{by_lower[head]}.{rest}"
        return None

    def value_of(self, role: Role, values: Mapping[str, Any]) -> Any:
        """What stands there, None for nothing."""
        name = self.name_of(role, values)
        return None if name is None else value_at(name, values)


def value_at(name: str, values: Mapping[str, Any]) -> Any:
    """The value of a column, or of a field within one; None where there is none."""
    if name in values:
        return values[name]
    found: Any = values
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def known_names(role: Role) -> str:
    """The names that are looked for, for an error."""
    return ", ".join(_NAMES[role])
