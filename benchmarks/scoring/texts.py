"""Score requests over arithmetic, drawn with a seed: as JSON for the wire, and as trajectories."""

import random
from dataclasses import dataclass
from typing import Any

from prm.steps import join_steps
from prm.types import Message, Trajectory

SEPARATOR = "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextItem:
    """A problem and the steps of one attempt at it."""

    problem: str
    steps: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """An item of `POST /v1/prm/score`."""
        return {"problem": self.problem, "steps": list(self.steps)}

    def to_trajectory(self) -> Trajectory:
        """What the server makes of it."""
        response, steps = join_steps(self.steps, SEPARATOR)
        return Trajectory(
            messages=(Message(role="user", content=self.problem),), response=response, steps=steps
        )


Request = list[TextItem]


def single_requests(count: int, seed: int) -> list[Request]:
    """One short item each: four steps."""
    draw = random.Random(seed)
    return [[_item(draw, 4)] for _ in range(count)]


def mixed_requests(count: int, seed: int) -> list[Request]:
    """One to eight items each, of one to forty steps."""
    draw = random.Random(seed)
    return [
        [_item(draw, draw.randint(1, 40)) for _ in range(draw.randint(1, 8))] for _ in range(count)
    ]


def _item(draw: random.Random, steps: int) -> TextItem:
    """Large numbers in the problem, so that no two are alike; small ones in the steps."""
    problem = "Evaluate ({}+{})*{}-{}".format(*(draw.randint(100, 999_999) for _ in range(4)))
    return TextItem(problem=problem, steps=tuple(_step(draw) for _ in range(steps)))


def _step(draw: random.Random) -> str:
    left, right = draw.randint(0, 99), draw.randint(0, 99)
    return f"{left}+{right}={left + right}"
