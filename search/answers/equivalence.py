"""Whether two final answers are the same one, and the classes that answers fall into."""

from collections.abc import Sequence
from typing import Literal, Protocol

from search.answers.normal import exact_key

# Undecided: the comparison took too long, too much memory, or broke.
Outcome = Literal["equal", "different", "undecided"]


class Equivalence(Protocol):
    """What a search asks about answers."""

    async def group(self, answers: Sequence[str]) -> list[int]:
        """For each answer the index of the first one that it is equivalent to, often its own.

        What cannot be decided counts as different: a class never grows by a failure.
        """
        ...

    async def is_equal(self, gold: str, answer: str) -> Outcome:
        """Whether the answer is right, given a right one."""
        ...


class ExactAnswers:
    """Answers are the same when they are written the same, but for spacing and decoration.

    No process, no mathematics: 1/2 and 0.5 differ.
    """

    async def group(self, answers: Sequence[str]) -> list[int]:
        """See `Equivalence.group`."""
        first: dict[str, int] = {}
        return [first.setdefault(exact_key(answer), i) for i, answer in enumerate(answers)]

    async def is_equal(self, gold: str, answer: str) -> Outcome:
        """See `Equivalence.is_equal`; never undecided."""
        return "equal" if exact_key(gold) == exact_key(answer) else "different"
