"""What a contestant trains, and how its answers are rewarded. Standard library only."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One training run: `problems` new prompts a step, `per_problem` responses to each.

    `algorithm` as Rung's jobs name them. `prompts` is a JSON file: the problems' texts, in the
    order in which steps take them. `micro_rollouts`: of one forward and backward of TRL's, which
    its memory depends on; `micro_tokens`: the same of Rung's.
    """

    algorithm: str
    folder: str
    prompts: str
    problems: int
    per_problem: int
    max_tokens: int
    threads: int
    micro_rollouts: int
    micro_tokens: int
    lr: float = 1e-6

    @property
    def rollouts(self) -> int:
        """Responses of a step."""
        return self.problems * self.per_problem

    def read_prompts(self) -> list[str]:
        """The problems' texts."""
        texts: list[str] = json.loads(Path(self.prompts).read_text())
        return texts

    def to_json(self) -> str:
        """For a contestant's command line."""
        return json.dumps(asdict(self))


def reward_of(response: str, sample: int, levels: int) -> float:
    """A reward in [0, 1], of so many possible ones, that depends on the text and its place in its
    group alone.

    By a checksum: a model with random weights is never right, and a group whose rewards are all
    equal is dropped by one contestant and trained on by the other. Of 1,000 levels there are none.
    """
    return zlib.crc32(f"{sample} {response}".encode()) % levels / (levels - 1)


def summed(steps: Sequence[dict[str, float]], **more: Any) -> dict[str, Any]:
    """A turn's answer: sums over its steps of what adds up, means of the rest."""
    mean = ("entropy", "grad_norm")
    return {
        "steps": len(steps),
        **{
            key: sum(step[key] for step in steps) / (len(steps) if key in mean else 1)
            for key in steps[0]
        },
        **more,
    }
