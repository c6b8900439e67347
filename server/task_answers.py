"""From a request's `answers` to what its search asks about them."""

from search.answers import Equivalence, ExactAnswers, Extraction, StatedAnswers, TaskAnswers
from server.sandbox import Sandbox
from server.schemas.answers import AnswersIn, CodeAnswersIn, TextAnswersIn
from training.grading.code_answers import CodeAnswers


class AnswerKinds:
    """How answers of each kind are compared: one `of` per search."""

    def __init__(self, math: Equivalence, sandbox: Sandbox) -> None:
        self._math = math
        self._sandbox = sandbox

    async def of(self, asked: AnswersIn) -> TaskAnswers:
        """What the search asks. Raises InvalidInput, or JailUnavailable for programs."""
        if isinstance(asked, CodeAnswersIn):
            extraction = Extraction(pattern=asked.pattern)
            await self._sandbox.check()
            return CodeAnswers(
                self._sandbox.grader,
                [test.to_test() for test in asked.tests],
                extraction=extraction,
                test_s=asked.seconds,
            )
        extraction = Extraction(
            pattern=asked.pattern, choices=asked.choices, last_number=asked.last_number
        )
        is_text = isinstance(asked, TextAnswersIn)
        return StatedAnswers(ExactAnswers() if is_text else self._math, extraction)
