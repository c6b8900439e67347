"""Trajectories for golden scores: a few of our own, or a publisher's with the scores to expect.

A line of a publisher's file is what `rung score` reads, with expectations beside it:

    {"problem": "…", "steps": ["…", "…"], "scores": [0.99, 0.02]}        or "raw": [4.6, -3.9]

`scores` are in [0, 1], `raw` are logits (of a policy: one number, the response's log-prob). What a
model card prints goes there, and the import is refused unless it comes out here too.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prm.errors import InvalidInput
from prm.families.base import sigmoid
from prm.manifest import Finite
from prm.types import Message


class GoldenItem(BaseModel):
    """One trajectory, and what its publisher expects of it, where he says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    problem: str | None = None
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    steps: tuple[str, ...] = Field(min_length=1)
    scores: tuple[Finite, ...] | None = None
    raw: tuple[Finite, ...] | None = None

    @model_validator(mode="after")
    def _has_one_problem(self) -> "GoldenItem":
        if (self.problem is None) == (self.messages is None):
            raise ValueError("give either problem or messages, and not both")
        return self

    @property
    def chat(self) -> tuple[Message, ...]:
        """The turns before the response."""
        return self.messages or (Message(role="user", content=self.problem or ""),)

    def check(self, found: Sequence[float], *, tolerance: float, where: str) -> None:
        """Raises InvalidInput, with both numbers, unless the raw numbers found are those expected.

        `tolerance` is on scores in [0, 1]; on raw numbers it is relative above 1.
        """
        scores = [sigmoid(raw) for raw in found]
        for name, ours, theirs in (("scores", scores, self.scores), ("raw", found, self.raw)):
            if theirs is None:
                continue
            if len(ours) != len(theirs):
                raise InvalidInput(
                    f"{where}: expects {len(theirs)} {name}, and the recipe gives {len(ours)}"
                )
            for place, (got, wanted) in enumerate(zip(ours, theirs, strict=True)):
                if not abs(got - wanted) <= tolerance * max(1.0, abs(wanted)):
                    raise InvalidInput(
                        f"{where}: {name}[{place}] is expected to be {wanted:.6g}, and is "
                        f"{got:.6g} here; the checkpoint or its recipe is not what these numbers "
                        f"were computed with (--tolerance is {tolerance:g})"
                    )


# One step; several; a wrong one; signs beyond ASCII; longer sentences.
BUILT_IN = (
    GoldenItem(problem="What is 6 * 7?", steps=("6 * 7 = 42, so the answer is 42.",)),
    GoldenItem(
        problem="Evaluate (3+4)*2-5", steps=("3+4=7", "7*2=14", "14-5=9", "The answer is 9")
    ),
    GoldenItem(
        problem="Solve 2x + 6 = 20 for x.",
        steps=("Subtract 6 from both sides: 2x = 14.", "Divide by 2: x = 8.", "So x = 8."),
    ),
    GoldenItem(
        problem="Calculate √144 − π⁰ (naïve guess: 12).",
        steps=("√144 = 12 and π⁰ = 1.", "12 − 1 = 11 → the answer is 11 ✓"),
    ),
    GoldenItem(
        problem="A farmer has 16 eggs. She eats 3 and sells the rest for $2 each. How much does "
        "she earn?",
        steps=(
            "She has 16 - 3 = 13 eggs left to sell.",
            "At $2 each, that makes 13 * 2 = 26 dollars.",
            "The answer is \\boxed{26}.",
        ),
    ),
)


def read_golden(path: Path) -> list[tuple[str, GoldenItem]]:
    """A publisher's file, each item with the words that name its line. Raises InvalidInput."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read as UTF-8 text: {error}") from error
    items = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                items.append((where, GoldenItem.model_validate(json.loads(line))))
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                place = ".".join(map(str, first["loc"])) or "item"
                raise InvalidInput(f"{where}: {place}: {first['msg']}") from error
            except (ValueError, RecursionError) as error:
                raise InvalidInput(f"{where}: not JSON: {error}") from error
    if not items:
        raise InvalidInput(f"{path}: holds no item")
    return items
