"""The nouns of training. Frozen, so that a rollout stays what was sampled."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTests:
    """How a program is tested: by statements that are run behind it, or by inputs and outputs.

    Each of `asserts` is one test; `setup` is run before them, behind the answer. Each of `cases` is
    an input and the output that is expected of it. `preamble` stands before the answer: what its
    author could rely on. Where an answer does not define `entry_point`, it goes on from `prompt`.

    >>> CodeTests(asserts=("assert double(2) == 4", "assert double(-1) == -2"))
    """

    asserts: tuple[str, ...] = ()
    cases: tuple[tuple[str, str], ...] = ()
    setup: str = ""
    preamble: str = ""
    prompt: str = ""
    entry_point: str | None = None

    def __post_init__(self) -> None:
        assert bool(self.asserts) != bool(self.cases), "tests are of one kind, and there are some"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with its reference answer; or with tests, and then the answer is empty.

    `id` names it in its source, `level` is how hard its source says it is.

    >>> Problem(text="Evaluate (3+4)*2-5", answer="9")
    """

    text: str
    answer: str = ""
    tests: CodeTests | None = None
    id: str | None = None
    level: float | None = None


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
