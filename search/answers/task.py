"""What a search asks about the answers to its problem: how they are stated, which are the same."""

from collections.abc import Sequence
from typing import Protocol

from search.answers.equivalence import Equivalence, ExactAnswers
from search.answers.extraction import Extraction, extract_answer
from search.types import Grade


class TaskAnswers(Protocol):
    """The answers to one problem. Asked again about the same ones, it need not look again."""

    def extract(self, text: str) -> str | None:
        """The final answer that a text states, or None."""
        ...

    async def group(self, answers: Sequence[str]) -> list[int]:
        """For each answer the index of the first one that it is equivalent to, often its own."""
        ...

    async def grades(self, answers: Sequence[str]) -> Sequence[Grade | None]:
        """What the problem's tests say of each answer; None where there are none."""
        ...


class StatedAnswers:
    """Answers that a text states in words or formulas, compared by `equivalence`; no tests."""

    def __init__(
        self, equivalence: Equivalence | None = None, extraction: Extraction | None = None
    ) -> None:
        self._equivalence = equivalence or ExactAnswers()
        self._extraction = extraction or Extraction()

    def extract(self, text: str) -> str | None:
        """See `extract_answer`."""
        return extract_answer(text, self._extraction)

    async def group(self, answers: Sequence[str]) -> list[int]:
        """See `Equivalence.group`."""
        return await self._equivalence.group(answers)

    async def grades(self, answers: Sequence[str]) -> Sequence[Grade | None]:
        """None of them is known to be right."""
        return [None] * len(answers)
