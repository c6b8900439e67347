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
from typing import ClassVar, Literal

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.families.base import (
    EncodedTrajectory,
    FamilySpec,
    HeadLayout,
    Proposal,
    Recipe,
    RecipeMismatch,
    Settings,
)
from prm.families.bound import HeadFamily
from prm.families.proposing import check_architecture, check_head, named_like
from prm.families.texts import (
    MATH_SYSTEM,
    answered_ids,
    check_count,
    refuse_control_tokens,
    refuse_marker,
    single_id,
)
from prm.manifest import ModelVersion
from prm.types import Trajectory

HEAD = HeadLayout(prefix="score", layers=("0", "2"), outputs=2)


class QwenRecipe(Recipe):
    """The marker behind a step, and the system turn of chats that have none.

    A `marker_id` that is set must be the tokenizer's; None takes whatever token the marker is.
    `system` None leaves the system turn to the template.
    """

    name: Literal["qwen-math-prm", "reasonflux-prm"] = "qwen-math-prm"
    marker: str = "<extra_0>"
    marker_id: int | None = 151651
    system: str | None = None

    by_name: ClassVar[Settings] = {"qwen-math-prm": {"system": MATH_SYSTEM, "context_limit": 4096}}


class QwenFamily(HeadFamily[QwenRecipe]):
    """A version of this kind, ready to encode and to score."""

    def __init__(self, version: ModelVersion, recipe: QwenRecipe, tokenizer: ChatTokenizer) -> None:
        super().__init__(version, recipe, tokenizer)
        self._marker_id = single_id(version.folder, tokenizer, recipe.marker, recipe.marker_id)

    def encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        """See `Family.encode`. One read, at every marker."""
        texts = [message.content for message in trajectory.messages]
        steps = [step.text for step in trajectory.steps]
        self._check_least(*texts, *steps)
        refuse_marker(trajectory, self.recipe.marker)
        refuse_control_tokens(trajectory, self._tokenizer)
        answer = "".join(step + self.recipe.marker for step in steps)
        ids = answered_ids(trajectory, answer, self.recipe.system, self._tokenizer)
        positions = [place for place, token in enumerate(ids) if token == self._marker_id]
        check_count(trajectory, len(positions), self.recipe.marker)
        return self._read_at(ids, positions, width=HEAD.outputs)

    def raw(self, outputs: Sequence[float]) -> float:
        """See `HeadFamily.raw`."""
        bad, good = outputs
        return good - bad


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
