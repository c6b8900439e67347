r"""ThinkPRM: a chain of thought verifies the steps, then a question that is answered yes or no.

Source: mukhal/ThinkPRM, `utils/helper.py` (`format_verification_cot_for_thinkprm`: prompt and the
chain's beginning) and `prm/thinkprm_api.py` (steps, stops, the question, how it is decided).

`step_scores` says what a step's score is:
* "prefix", the authors': a chain over the steps up to this one, then P(yes) of "Is the solution
  correct?". One chain per step and sample. A chain that ran into `max_tokens` is asked as it is.
* "verdicts": one chain over all steps, and P(correct) where it writes the step's `\boxed{correct}`
  or `\boxed{incorrect}`. Cheaper, and the model decides how many verdicts it writes
  (mukhal/ThinkPRM #4): a chain that does not go through `Step 1:` to `Step n:` at line starts, with
  one verdict each, is discarded. The authors' `extract_step_cots_and_labels` counts lines, and
  takes `\boxed{incorrect}` for correct, since "incorrect" has "correct" in it.

The authors ask through SGLang's choices, which average a choice's log-prob with that of the token
before it when the two are tokenised anew together (`runtime_endpoint.py`, token healing): by its
source, ` yes` with `?`. Their scores are then those of `decision_temperature` 2; the paper (arXiv
2504.16828) has 1, and so has the default. Of their two ways to spend more, samples side by side
and sequential rounds, this has the first.
"""

import re
from dataclasses import dataclass

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput
from prm.families.base import HeadRead
from prm.families.texts import problem_of, step_field
from prm.families.verdicts import JOINT, GenerativeRecipe, Labels, VerdictFamily
from prm.manifest import ModelVersion
from prm.types import Message, Trajectory

BEFORE_PROBLEM = (
    "You are given a math problem and a proposed step-by-step solution:\n\n[Math Problem]\n\n"
)
BEFORE_SOLUTION = "\n\n[Solution]\n\n"
AFTER_SOLUTION = (
    "\n\nReview and critique each step in the proposed solution to determine whether each step is "
    "correct. If the solution is incomplete, only verify the provided steps."
)
BEGINNING = "\nLet's verify step by step:"
QUESTION, YES_NO = "\nIs the solution correct? ", ("yes", "no")
BOX, CORRECT_INCORRECT = "\\boxed{", ("correct", "incorrect")
STOPS = ("Is the solution correct?", "</think>")

_STEP_NUMBER = re.compile(r"Step \d+:")
# In a chain: a step's heading, or a verdict.
_MARK = re.compile(
    r"^[ \t#*]*Step (?P<step>[0-9]+):|\\boxed\{(?P<label>correct|incorrect)\}", re.MULTILINE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain's verdicts: where in its text each label begins, and which label was written."""

    places: tuple[int, ...]
    labels: tuple[str, ...]


class UnusableChain(Exception):
    """A chain that does not judge every step once: at which step (from 1) it goes wrong, and how.

    >>> str(UnusableChain(2, "is not judged"))
    'step 2 is not judged'
    """

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step} {reason}")
        self.step = step


class ThinkPrm(VerdictFamily):
    """A ThinkPRM version: the ids of each question. See `VerdictFamily`."""

    def __init__(
        self, version: ModelVersion, recipe: GenerativeRecipe, tokenizer: ChatTokenizer
    ) -> None:
        super().__init__(version, recipe, tokenizer)
        if recipe.step_scores == "prefix":
            labels = Labels.of(version, tokenizer, QUESTION, YES_NO).single(version, tokenizer)
        else:
            labels = Labels.of(version, tokenizer, BOX, CORRECT_INCORRECT)
        self.labels = labels

    def silent(self, trajectory: Trajectory) -> list[HeadRead]:
        """See `VerdictFamily.silent`: the chain is empty, or nothing but verdicts, all correct."""
        self._check_texts(trajectory)
        steps = range(1, len(trajectory.steps) + 1)
        if self.recipe.step_scores == "prefix":
            found = [self.asked(self.begun(trajectory, step), "") for step in steps]
        else:
            text = "".join(f"\nStep {step}: {BOX}{CORRECT_INCORRECT[0]}}}" for step in steps)
            found = self.placed(self.begun(trajectory, len(steps)), text, len(steps))
        self.check_length(len(found[-1]) + 1, "at least ")
        return [self.read(ids) for ids in found]

    def begun(self, trajectory: Trajectory, steps: int) -> tuple[int, ...]:
        """Ids up to where the chain over the first `steps` steps begins."""
        numbered = "\n".join(
            f"Step {step.index + 1}: {_without_number(step.text)}"
            for step in trajectory.steps[:steps]
        )
        text = BEFORE_PROBLEM + problem_of(trajectory) + BEFORE_SOLUTION + numbered + AFTER_SOLUTION
        chat = self._tokenizer.render(
            [Message(role="user", content=text)], add_generation_prompt=True
        )
        return self._tokenizer.encode_markup(chat + BEGINNING)

    def stops(self, steps: int) -> tuple[str, ...]:
        """Where a chain over this many steps ends: at the question, or at a step there is not."""
        return (*STOPS, f"Step {steps + 1}:")

    def room(self, begun: tuple[int, ...]) -> int:
        """Tokens that a chain may have, so that the question and its answer fit the context."""
        asks = self.recipe.step_scores == "prefix"
        silent = len(self.asked(begun, "")) + 1 if asks else len(begun)
        return self.context_limit - silent - JOINT

    def asked(self, begun: tuple[int, ...], chain: str) -> tuple[int, ...]:
        """Ids after which the answer to the question stands."""
        ids = begun + self._tokenizer.encode_response(chain + QUESTION + YES_NO[0]).ids
        assert ids[-1] == self.labels.ids[0], "the label is the token it was when the model loaded"
        return ids[:-1]

    def placed(self, begun: tuple[int, ...], text: str, steps: int) -> list[tuple[int, ...]]:
        """Ids after which each verdict of a chain stands, in step order. Raises UnusableChain."""
        encoded = self._tokenizer.encode_response(text)
        begins = {start: at for at, (start, _) in enumerate(encoded.char_offsets)}
        found = []
        for step, place in enumerate(verdicts_in(text, steps).places, start=1):
            at = begins.get(place - self.labels.lead)
            if at is None or encoded.ids[at] not in self.labels.ids:
                raise UnusableChain(step, "has a verdict in other tokens than the labels'")
            found.append(begun + encoded.ids[:at])
        return found

    def _check_texts(self, trajectory: Trajectory) -> None:
        super()._check_texts(trajectory)
        for step in trajectory.steps:
            if not _without_number(step.text):
                raise InvalidInput(
                    f"step {step.index} is a heading and nothing else: {step.text!r}",
                    param=step_field(trajectory, step.index),
                )


def verdicts_in(text: str, steps: int) -> Chain:
    """The verdicts of a chain over this many steps. Raises UnusableChain: not one per step."""
    step, found = 0, list[re.Match[str]]()
    for mark in _MARK.finditer(text):
        is_judged = len(found) == step
        if mark["label"]:
            if is_judged:
                raise UnusableChain(max(step, 1), "is judged twice" if step else "begins nowhere")
            found.append(mark)
        elif not is_judged:
            raise UnusableChain(step, "is not judged")
        elif int(mark["step"]) != step + 1 or step == steps:
            raise UnusableChain(min(step + 1, steps), f"is out of place: 'Step {mark['step']}:'")
        else:
            step += 1
    if len(found) < steps:
        raise UnusableChain(len(found) + 1, "is not judged")
    return Chain(
        places=tuple(mark.start("label") for mark in found),
        labels=tuple(mark["label"] for mark in found),
    )


def _without_number(text: str) -> str:
    """A step as the authors number it anew (`process_example` and `score`)."""
    return _STEP_NUMBER.sub("", text.replace("## Step", "Step")).strip()
