"""Outcome reward models: one score for a whole response, read at the end of the chat.

Qwen2.5-Math-RM-72B (its card and `modeling_qwen2_rm.py`: Linear, ReLU, Linear(1) with biases) and
any AutoModelForSequenceClassification with one label (one Linear without a bias). The chat is
rendered with the response as the assistant's turn and no prompt for another; the head is read at
the last token that is not padding, as transformers does. Raw is the value, the score its sigmoid.

Such a model was never shown the end of a step, so by default the response is *one* step: the steps
that a request gives are joined into it, the answer has one step whose offsets cover the whole
response, and the number of scores is again the number of steps that the answer names. With
`prefixes` each step's score is instead what the model says of the response up to its end, as if
that were all: a number per step for searches, which its authors do not promise to mean anything.

Traps. A base model loaded for sequence classification has a random head; the engine refuses it.
Qwen2.5-Math-RM is given its system turn; without it the template writes another.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.families.base import (
    EncodedTrajectory,
    FamilySpec,
    HeadLayout,
    HeadRead,
    Proposal,
    Recipe,
    Settings,
)
from prm.families.bound import HeadFamily
from prm.families.proposing import check_architecture, check_head
from prm.families.texts import MATH_SYSTEM, answered_ids, refuse_control_tokens
from prm.manifest import ModelVersion
from prm.types import Step, Trajectory


class OutcomeRecipe(Recipe):
    """The system turn of chats that have none, the head's layers, and what steps get; see above."""

    name: Literal["sequence-classification", "qwen-math-rm"] = "sequence-classification"
    system: str | None = None
    layers: tuple[str, ...] = ("",)
    bias: bool = False
    prefixes: bool = False

    by_name: ClassVar[Settings] = {
        "qwen-math-rm": {"system": MATH_SYSTEM, "layers": ("0", "2"), "bias": True}
    }

    @property
    def head(self) -> HeadLayout:
        """The head's tensors."""
        return HeadLayout(prefix="score", outputs=1, layers=self.layers, bias=self.bias)


class OutcomeFamily(HeadFamily[OutcomeRecipe]):
    """A version of this kind, ready to encode and to score."""

    def __init__(
        self, version: ModelVersion, recipe: OutcomeRecipe, tokenizer: ChatTokenizer
    ) -> None:
        super().__init__(version, recipe, tokenizer)
        self._padding_id = version.config.get("pad_token_id")

    def encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        """See `Family.encode`. One read of the whole, or one per step."""
        texts = [message.content for message in trajectory.messages]
        self._check_least(*texts, trajectory.response)
        refuse_control_tokens(trajectory, self._tokenizer)
        self._tokenizer.refuse_control_tokens(trajectory.response, param="response")
        steps = trajectory.steps if self.recipe.prefixes else (_whole(trajectory),)
        reads = [self._read(trajectory, step.char_end) for step in steps]
        for read in reads:
            self.check_length(len(read.ids))
        return replace(self._read_apart(reads), steps=steps)

    def _read(self, trajectory: Trajectory, end: int) -> HeadRead:
        """The chat with the response up to `end`, read where it ends."""
        response = trajectory.response[:end]
        ids = answered_ids(trajectory, response, self.recipe.system, self._tokenizer)
        last = max((n for n, token in enumerate(ids) if token != self._padding_id), default=0)
        return HeadRead(model=self._model, ids=ids[: last + 1], positions=(last,), width=1)

    def raw(self, outputs: Sequence[float]) -> float:
        """See `HeadFamily.raw`."""
        (value,) = outputs
        return value


def _whole(trajectory: Trajectory) -> Step:
    """The response as one step."""
    text = trajectory.response
    return Step(index=0, text=text, char_start=0, char_end=len(text))


def propose(checkpoint: Checkpoint) -> Proposal[OutcomeRecipe]:
    """By class and head."""
    check_architecture(checkpoint, SPEC.architectures)
    if "score.0.weight" in checkpoint.shapes:
        recipe = OutcomeRecipe.model_validate({"name": "qwen-math-rm"})
    else:
        recipe = OutcomeRecipe(bias="score.bias" in checkpoint.shapes)
    check_head(checkpoint, recipe.head)
    return Proposal(recipe=recipe, aggregation="last")


SPEC = FamilySpec(
    name="outcome",
    architectures=("ForSequenceClassification", "ForRewardModel"),
    recipe=OutcomeRecipe,
    bind=OutcomeFamily,
    propose=propose,
    head=lambda recipe: recipe.head,
)
