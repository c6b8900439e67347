"""What a task is: problems made by program, and exact labels for whatever is written about them.

Settings are the fields of a closed, frozen model, told apart by `type`, so that a job can name a
task and its settings in a file. Nothing here, nor in any task, imports torch.
"""

import hashlib
import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from prm.errors import InvalidInput
from training.types import Problem, Rollout

Split = Literal["train", "validation", "test"]
# Half-open, in characters of the response.
Span = tuple[int, int]
# Of a hundred hash values, how many fall to each split.
_SHARES: dict[Split, range] = {
    "train": range(80), "validation": range(80, 90), "test": range(90, 100)
}  # fmt: skip
_TRIES_PER_PROBLEM = 200


def _is_ascending(ends: tuple[int, int]) -> tuple[int, int]:
    if ends[0] > ends[1]:
        raise ValueError(f"the first number is the least: write [{ends[1]}, {ends[0]}]")
    return ends


Count = Annotated[int, Field(ge=1, le=1000)]
# The least and the most, both included.
CountRange = Annotated[tuple[Count, Count], AfterValidator(_is_ascending)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Task(BaseModel):
    """Base of a task. Of any response it knows the outcome, the steps and the first wrong step.

    `separator` ends a step, or stands between two of them; empty: each character is a step.
    `alphabet`: a model made for this task needs no other characters, one token each; None: any
    text, by bytes (`training.tokenizer`). `graded_by` says who knows the outcome: the task itself,
    or the tests that its problems hold, run in the sandbox.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    separator: ClassVar[str]
    alphabet: ClassVar[str | None] = None
    graded_by: ClassVar[Literal["task", "tests"]] = "task"

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Tokens of the longest response that a solution writer gives, its end token included."""

    @abstractmethod
    def problems(self, seed: int, count: int, split: Split) -> list[Problem]:
        """`count` different problems, the same for the same seed; no problem is in two splits.

        Raises InvalidInput when so many are not to be found.
        """

    @abstractmethod
    def solution(self, problem: Problem, rng: random.Random) -> str:
        """A response to imitate, with the slips that the settings ask for."""

    @abstractmethod
    def expert(self, problem: Problem, rng: random.Random) -> str:
        """A demonstration: the oracle's response, or one as noisy as the settings ask for."""

    @abstractmethod
    def answer_of(self, response: str) -> str | None:
        """The final answer, for votes; None where the response gives none."""

    @abstractmethod
    def is_correct(self, problem: Problem, response: str) -> bool:
        """The outcome label."""

    @abstractmethod
    def first_error(self, problem: Problem, response: str) -> int | None:
        """The process label: the index of the first wrong step of `steps_of(response)`, or None."""

    def reward(self, problem: Problem, response: str) -> float:
        """The outcome reward, in [0, 1]; 1 where the response is right."""
        return float(self.is_correct(problem, response))

    def step_spans(self, response: str) -> tuple[Span, ...]:
        """Where each step stands, with the separator that ends it; blank ones are no steps."""
        if not self.separator:
            return tuple((start, start + 1) for start in range(len(response)))
        return separated_spans(response, self.separator)

    def steps_of(self, response: str) -> tuple[str, ...]:
        """The texts of the steps, without their separators."""
        return tuple(
            response[start:end].removesuffix(self.separator)
            for start, end in self.step_spans(response)
        )

    def label(self, problem: Problem, response: str) -> Rollout:
        """The response's steps with both labels."""
        return Rollout(
            problem=problem,
            steps=self.steps_of(response),
            is_correct=self.is_correct(problem, response),
            first_error=self.first_error(problem, response),
        )


def separated_spans(text: str, separator: str) -> tuple[Span, ...]:
    """The pieces of a text, each with the separator that ends it; blank ones are left out."""
    spans: list[Span] = []
    start = 0
    for piece in text.split(separator):
        end = min(len(text), start + len(piece) + len(separator))
        if piece.strip():
            spans.append((start, end))
        start = end
    return tuple(spans)


def split_of(key: str) -> Split:
    """The split that a problem with this key belongs to, by the key's hash."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % 100
    return next(split for split, share in _SHARES.items() if bucket in share)


def distinct_problems(
    draw: Callable[[random.Random], Problem], seed: int, count: int, split: Split
) -> list[Problem]:
    """`count` different problems of one split, decided by their texts.

    Raises InvalidInput when they are not found within a few hundred draws each.
    """
    rng = random.Random(f"{split} {seed}")
    found: dict[str, Problem] = {}
    for _ in range(1000 + _TRIES_PER_PROBLEM * count):
        if len(found) == count:
            return list(found.values())
        problem = draw(rng)
        if split_of(problem.text) == split:
            found[problem.text] = problem
    raise InvalidInput(
        f"only {len(found)} of {count} different {split} problems can be made with these settings; "
        "ask for fewer, or make the problems longer",
        param="count",
    )


def clipped_index(index: int, steps: Sequence[str]) -> int:
    """`index`, or that of the last step that was written where there are fewer; 0 without any."""
    return max(0, min(index, len(steps) - 1))
