"""Qwen2.5-Math-PRM and its kin: a two-layer head read at a marker token behind every step.

    system: … · user: {problem} · assistant: {step 1}<extra_0>{step 2}<extra_0>…

Qwen2.5-Math-PRM-7B and -72B, Qwen2.5-Math-7B-PRM800K: model card and `modeling_qwen2_rm.py`;
arXiv 2501.07301. The head is Linear, ReLU, Linear(2) on each marker's last hidden state; raw =
l₁ − l₀, so that the score is the softmax of the two and class 1 is "good". The paper ranks
responses by the product of step scores and calls a step wrong below 0.5. ReasonFlux-PRM-7B
(arXiv 2506.18896) has the same shape and no system turn of its own.

Traps. Loaded as a causal LM such a checkpoint still runs, and vocabulary logits get read as scores
(Gen-Verse/ReasonFlux #20): the engine refuses a checkpoint without this head. The card's helper
finds markers by non-zero probabilities, which lose one that underflows; here positions are known
before the model runs. Without a system turn the template writes one of its own, which is not the
one that the PRM was trained under.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import model_validator

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.families.base import (
    EncodedTrajectory,
    FamilyScores,
    FamilySpec,
    HeadLayout,
    Proposal,
    ReadOutput,
    Recipe,
    RecipeMismatch,
    check_length,
    context_limit,
    step_score,
)
from prm.families.head_reads import one_read, rows
from prm.families.own_head import (
    MATH_SYSTEM,
    check_architecture,
    check_count,
    check_head,
    refuse_text,
    with_defaults,
)
from prm.families.texts import named_like, refuse_control_tokens, single_id
from prm.manifest import ModelVersion
from prm.types import Message, Trajectory

HEAD = HeadLayout(prefix="score", layers=("0", "2"), outputs=2)

_BY_NAME: dict[str, dict[str, Any]] = {
    "qwen-math-prm": {"system": MATH_SYSTEM, "context_limit": 4096},
    "reasonflux-prm": {"system": None},
}


class QwenRecipe(Recipe):
    """The marker behind a step, and the system turn of chats that have none.

    A `marker_id` that is set must be the tokenizer's; None takes whatever token the marker is.
    `system` None leaves the system turn to the template.
    """

    name: Literal["qwen-math-prm", "reasonflux-prm"] = "qwen-math-prm"
    marker: str = "<extra_0>"
    marker_id: int | None = 151651
    system: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        return with_defaults(values, _BY_NAME, "qwen-math-prm")


class QwenFamily:
    """A version of this kind, ready to encode and to score."""

    def __init__(self, version: ModelVersion, recipe: QwenRecipe, tokenizer: ChatTokenizer) -> None:
        self.recipe = recipe
        self._tokenizer = tokenizer
        self._model = version.key
        self._context_limit = context_limit(version, recipe)
        self._marker_id = single_id(version.folder, tokenizer, recipe.marker, recipe.marker_id)

    def encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        """See `Family.encode`. One read, at every marker."""
        texts = [message.content for message in trajectory.messages]
        steps = [step.text for step in trajectory.steps]
        self._check_length(self._tokenizer.least_tokens(*texts, *steps), "at least ")
        refuse_text(trajectory, self.recipe.marker)
        refuse_control_tokens(trajectory, self._tokenizer)
        answer = "".join(step + self.recipe.marker for step in steps)
        chat = (*trajectory.messages, Message(role="assistant", content=answer))
        if self.recipe.system is not None and chat[0].role != "system":
            chat = (Message(role="system", content=self.recipe.system), *chat)
        ids = self._tokenizer.encode_markup(
            self._tokenizer.render(chat, add_generation_prompt=False)
        )
        positions = [place for place, token in enumerate(ids) if token == self._marker_id]
        check_count(trajectory, len(positions), self.recipe.marker)
        encoded = one_read(self._model, ids, positions, width=HEAD.outputs)
        self._check_length(len(encoded.ids))
        return encoded

    def score(self, encoded: EncodedTrajectory, outputs: Sequence[ReadOutput]) -> FamilyScores:
        """See `Family.score`."""
        pairs = rows(outputs, width=HEAD.outputs)
        return FamilyScores(steps=tuple(step_score(good - bad) for bad, good in pairs))

    def _check_length(self, length: int, about: str = "") -> None:
        check_length(length, self._context_limit, self._model, about)


def propose(checkpoint: Checkpoint) -> Proposal[QwenRecipe]:
    """By the class's name, the head's shapes and the marker; ReasonFlux by its name alone."""
    check_architecture(checkpoint, SPEC.architectures)
    check_head(checkpoint, HEAD)
    name = "reasonflux-prm" if named_like(checkpoint, "reasonflux") else "qwen-math-prm"
    name = checkpoint.asked.get("name", name)
    marker = QwenRecipe().marker
    ids = checkpoint.tokenizer.encode_markup(marker)
    if len(ids) != 1:
        raise RecipeMismatch(f"the marker {marker!r} is {len(ids)} tokens here, and must be one")
    recipe = QwenRecipe.model_validate({"name": name, "marker_id": ids[0]})
    return Proposal(recipe=recipe, aggregation="product")


SPEC = FamilySpec(
    name="qwen",
    architectures=("ForProcessRewardModel",),
    recipe=QwenRecipe,
    bind=QwenFamily,
    propose=propose,
    head=lambda _: HEAD,
)
