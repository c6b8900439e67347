"""The nouns of training. Frozen, so that a rollout stays what was sampled."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with its reference answer.

    >>> Problem(text="Evaluate (3+4)*2-5", answer="9")
    """

    text: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled response to a problem, and what checking it says.

    `is_correct` is the outcome label, all that an implicit PRM is trained on; `first_error` is the
    process label (the first wrong step, or None), used for evaluation alone.

    >>> Rollout(problem=Problem(text="Evaluate 3+4*2", answer="11"),
    ...         steps=("4*2=9", "3+9=12", "Answer: 12"), is_correct=False, first_error=0)
    """

    problem: Problem
    steps: tuple[str, ...]
    is_correct: bool
    first_error: int | None
