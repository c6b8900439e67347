r"""GenPRM: a conversation in which every step is a user turn, and every verdict an assistant turn.

Source: RyanLiu112/GenPRM, `src/prm_evaluation/eval_logic/processbench.py` (turns, system text) and
`src/prm_evaluation/infer_module/infer_genprm.py` (blocks, stops, what is done with a text that was
cut); the softmax over Yes and No is that of `genprm_inference.py`, `get_reward_score`.

The turn of step k opens an analyze block, then a verify block where the recipe wants one, and ends
in `$\boxed{`, after which P(Yes) and P(No) are read. Here they are read where the verdict must
stand; the authors look for the last Yes or No that was sampled, and give 0.5 where there is none.
The following turns see the first sample's text, as there, with its likelier verdict, which the
authors sample.

A block that ended without its closing tag, by `max_tokens` or the model's own end of turn, is
treated as there: a verify block is dropped, an analyze block is closed, and the verdict is asked.

Texts are sampled as there: temperature 0.6, top_k 20, then top_p 0.95.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput
from prm.families.base import HeadRead
from prm.families.texts import problem_of
from prm.families.verdicts import JOINT, GenerativeRecipe, Labels, VerdictFamily
from prm.manifest import ModelVersion
from prm.types import Message, Trajectory

REASONED = (
    "You are a math teacher. Your task is to review and critique the paragraphs in solution step "
    "by step."
)
DIRECT = (
    "You are a math teacher. Your task is to review and critique the paragraphs in solution "
    "directly. Output your judgement in the format of `\\boxed{Yes}` if the paragraph is correct, "
    "or `\\boxed{No}` if the paragraph is incorrect."
)
VERDICT, YES_NO, END = "<output>\n**Judgement**: $\\boxed{", ("Yes", "No"), "}$\n</output>\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A stretch that the model writes: what opens it, its closing tag, and the string to stop at.

    `opening` holds the number of the step, from 1, at `{step}`.
    """

    opening: str
    tag: str

    @property
    def closing(self) -> str:
        """The closing tag as the model writes it."""
        return f"{self.tag}\n"


ANALYZE = Block(
    opening="<analyze>\nLet's analyze the Paragraph {step} step by step: ", tag="</analyze>"
)
VERIFY = Block(
    opening="<verify>\nLet's use python code to find any potential error:\n```python\n",
    tag="</verify>",
)


class GenPrm(VerdictFamily):
    """A GenPRM version: the ids of each turn. See `VerdictFamily`."""

    def __init__(
        self, version: ModelVersion, recipe: GenerativeRecipe, tokenizer: ChatTokenizer
    ) -> None:
        super().__init__(version, recipe, tokenizer)
        self.blocks = (ANALYZE,) * recipe.analyze + (VERIFY,) * recipe.verify
        self.labels = Labels.of(version, tokenizer, VERDICT, YES_NO).single(version, tokenizer)

    def silent(self, trajectory: Trajectory) -> list[HeadRead]:
        """See `VerdictFamily.silent`: every block is empty, every verdict before is Yes."""
        self._check_texts(trajectory)
        nothing = [""] * len(self.blocks)
        turns: list[str] = []
        reads = []
        for step in trajectory.steps:
            ids = self.judged(self.begun(trajectory, turns), nothing)
            reads.append(self.read(ids))
            turns.append(self.turn(step.index, nothing, YES_NO[0]))
        self.check_length(len(ids) + 1, "at least ")
        return reads

    def begun(self, trajectory: Trajectory, turns: Sequence[str]) -> tuple[int, ...]:
        """Ids up to where the next step's first block, or verdict, begins; `turns` came before."""
        system = REASONED if self.blocks else DIRECT
        messages = [Message(role="system", content=system)]
        for step, turn in zip(trajectory.steps[: len(turns) + 1], [*turns, None], strict=True):
            text = step.text if step.index else f"{problem_of(trajectory)}\n{step.text}"
            messages.append(Message(role="user", content=text))
            if turn is not None:
                messages.append(Message(role="assistant", content=turn))
        chat = self._tokenizer.render(messages, add_generation_prompt=True)
        return self._tokenizer.encode_markup(chat + self._opening(len(turns)))

    def continued(self, begun: tuple[int, ...], written: Sequence[str]) -> tuple[int, ...]:
        """Ids after which the next block is written; `written` are those before it."""
        text = self._joined(written, is_verdict_next=False)
        return begun + self._tokenizer.encode_response(text).ids

    def judged(self, begun: tuple[int, ...], written: Sequence[str]) -> tuple[int, ...]:
        """Ids after which the verdict stands."""
        text = self._joined(written, is_verdict_next=True)
        ids = begun + self._tokenizer.encode_response(text + YES_NO[0]).ids
        assert ids[-1] == self.labels.ids[0], "the label is the token it was when the model loaded"
        return ids[:-1]

    def room(self, begun: tuple[int, ...], written: Sequence[str]) -> int:
        """Tokens that may still be written before the verdict, so that it fits the context."""
        rest = [""] * (len(self.blocks) - len(written))
        return self.context_limit - len(self.judged(begun, [*written, *rest])) - 1 - JOINT

    def turn(self, step: int, written: Sequence[str], label: str) -> str:
        """The whole text of an assistant turn."""
        return self._opening(step) + self._joined(written, is_verdict_next=True) + label + END

    def can_be_reread(self, written: Sequence[str]) -> bool:
        """Whether these blocks, as part of a later turn, stay text: no control token spelt out."""
        try:
            for text in written:
                self._tokenizer.refuse_control_tokens(text, param="")
        except InvalidInput:
            return False
        return True

    def _opening(self, step: int) -> str:
        return self.blocks[0].opening.format(step=step + 1) if self.blocks else ""

    def _joined(self, written: Sequence[str], *, is_verdict_next: bool) -> str:
        """What follows the first opening: written blocks, closed, and the next thing's opening."""
        text = ""
        for number, (block, own) in enumerate(zip(self.blocks, written, strict=False)):
            text += (block.opening if number else "") + own + block.closing
        if is_verdict_next:
            return text + VERDICT
        return text + (self.blocks[len(written)].opening if written else "")
