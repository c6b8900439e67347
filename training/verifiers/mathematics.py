"""Final answers compared as mathematics, in processes that can be killed."""

from search.answers import Extraction, MathAnswers, extract_answer
from training.types import Problem
from training.verifiers.base import Outcome


class MathVerifier:
    """1 when the response's final answer equals the problem's, 0 when it differs or states none.

    What could not be decided (too long, too much memory, a crash) is an error. `extraction` says
    how responses state their answers; by default boxed or announced.
    """

    def __init__(
        self,
        answers: MathAnswers | None = None,
        *,
        extraction: Extraction | None = None,
        workers: int = 2,
    ) -> None:
        self._answers = answers or MathAnswers(workers=workers)
        self._extraction = extraction or Extraction()
        self.concurrency = workers

    async def start(self) -> None:
        """Start the processes. Raises Unavailable."""
        await self._answers.__aenter__()

    async def grade(self, problem: Problem, response: str) -> Outcome:
        """See `Verifier.grade`."""
        if not problem.answer:
            return Outcome(error="the problem has no answer")
        answer = extract_answer(response, self._extraction)
        if answer is None:
            return Outcome(reward=0.0)
        outcome = await self._answers.is_equal(problem.answer, answer)
        if outcome == "undecided":
            return Outcome(error="the comparison of answers is undecided")
        return Outcome(reward=float(outcome == "equal"))

    async def aclose(self) -> None:
        """End the processes."""
        await self._answers.aclose()
