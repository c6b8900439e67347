"""Wire types of a search's `answers`: how final answers are stated, compared and tested."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from prm.patterns import MAX_PATTERN_CHARS
from server.schemas.common import Wire, is_text
from training.grading.code import AssertTest, CodeTest, OutputTest

MAX_TESTS = 64
# Of a float's 15 to 17 digits; beyond them nothing is rounded.
MAX_ROUNDING = 15
# As much as a program may print: what is longer could never be equal.
MAX_TEST_CHARS = 1 << 16

TestText = Annotated[str, Field(max_length=MAX_TEST_CHARS), AfterValidator(is_text)]
Pattern = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_PATTERN_CHARS,
        description="Its last match is the answer: the group `answer`, else the first group.",
    ),
    AfterValidator(is_text),
]


class _StatedAnswersIn(Wire):
    """Answers that a text states: by a task's pattern or choices, boxed, or behind "answer is"."""

    pattern: Pattern | None = None
    choices: Annotated[str, Field(min_length=2, max_length=26)] | None = Field(
        default=None, description="The letters of a multiple choice, as ABCD."
    )
    last_number: bool = Field(
        default=False, description="Where nothing is stated, the last number or formula counts."
    )

    @model_validator(mode="after")
    def _has_one_rule(self) -> Self:
        if self.pattern is not None and (self.choices is not None or self.last_number):
            raise ValueError("a pattern alone decides; leave out choices and last_number")
        return self


class MathAnswersIn(_StatedAnswersIn):
    """Answers that are equal as mathematics are the same. The rules' defaults are math-verify's."""

    type: Literal["math"] = "math"
    float_rounding: int = Field(
        default=6, ge=0, le=MAX_ROUNDING, description="Decimals that rounded numbers agree to."
    )
    strict: bool = Field(default=True, description="Letters matter: f(x) is not f(y).")
    relations_as_sets: bool = Field(
        default=False, description="A relation is the interval that it means."
    )
    ordered: bool = Field(
        default=False, description='"1, 2" without braces is a sequence, and "2, 1" another one.'
    )


class TextAnswersIn(_StatedAnswersIn):
    """Answers are the same when they are written the same, but for spacing and decoration."""

    type: Literal["text"] = "text"


class CodeTestIn(Wire):
    """Either Python that runs behind the program, or an input and what is to be printed for it."""

    code: TestText | None = Field(default=None, description="Passed when it raises nothing.")
    input: TestText | None = None
    output: TestText | None = Field(
        default=None,
        description="Compared by line and word. Without it the input only tells programs apart.",
    )

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if (self.code is None) == (self.input is None):
            raise ValueError("give either code, or input and output")
        if self.code is not None and self.output is not None:
            raise ValueError("output goes with input, not with code")
        return self

    def to_test(self) -> CodeTest:
        """The same in our words."""
        if self.code is not None:
            return AssertTest(code=self.code)
        return OutputTest(input=self.input or "", output=self.output)


class CodeAnswersIn(Wire):
    """Answers are Python programs, run by these tests in a sandbox."""

    type: Literal["code"] = "code"
    tests: tuple[CodeTestIn, ...] = Field(min_length=1, max_length=MAX_TESTS)
    pattern: Pattern | None = Field(
        default=None, description="Default: the last fenced block, else the whole text."
    )
    seconds: float = Field(
        default=5.0, gt=0, le=30, allow_inf_nan=False, description="The most that one test takes."
    )


AnswersIn = Annotated[MathAnswersIn | TextAnswersIn | CodeAnswersIn, Field(discriminator="type")]


class GradeOut(BaseModel):
    """How many of the given tests a program passed, and why the first other one failed.

    Tests that expect nothing do not count.
    """

    passed: int
    total: int
    reason: str | None
