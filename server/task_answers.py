"""From a request's `answers` to what its search asks about them."""

from search.answers import (
    ExactAnswers,
    Extraction,
    MathAnswers,
    MathRules,
    StatedAnswers,
    TaskAnswers,
)
from server.sandbox import Sandbox
from server.schemas.answers import AnswersIn, CodeAnswersIn, TextAnswersIn
from training.grading.code_answers import CodeAnswers


class AnswerKinds:
    """How answers of each kind are compared: one `of` per search."""

    def __init__(self, math: MathAnswers, sandbox: Sandbox) -> None:
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
        if isinstance(asked, TextAnswersIn):
            return StatedAnswers(ExactAnswers(), extraction)
        rules = MathRules(
            float_rounding=asked.float_rounding,
            strict=asked.strict,
            relations_as_sets=asked.relations_as_sets,
            ordered=asked.ordered,
        )
        return StatedAnswers(self._math.by(rules), extraction)
