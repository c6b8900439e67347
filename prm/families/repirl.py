"""rePIRL's PRM with a head over actions: a reward for each token, read before it is written.

    r_t = tanh((W·h_{t−1} + b)[a_t])

arXiv 2602.07832 leaves the read-out open; its released code has a head on the state *behind* the
token (`token_head`, recipe `repirl`), which has to compare the token that was written with the one
that it would have written. Here the state before the token has an output per token: what stands in
the problem and in the steps so far is laid out as for an implicit PRM, a step's number is the sum
over its tokens, and there is no reference. The checkpoint is a token classifier with as many labels
as the vocabulary has entries, at whose position t − 1 label a_t is read.

The authors rank whole responses by the mean over tokens, which sums order alike where responses are
equally long.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from prm.checkpoint import Checkpoint
from prm.families.base import (
    EncodedTrajectory,
    FamilyScores,
    FamilySpec,
    HeadLayout,
    LogprobRead,
    Proposal,
    ReadOutput,
    Recipe,
    RecipeMismatch,
)
from prm.families.bound import BoundFamily
from prm.families.implicit import (
    EncodedResponse,
    StepValue,
    refuse_step_without_token,
    scores_of,
)
from prm.families.proposing import check_architecture, check_head
from prm.types import Trajectory


class RepirlRecipe(Recipe):
    """`outputs` of the head: one per id of the vocabulary. `step_value` as of an implicit PRM."""

    name: Literal["repirl-actions"] = "repirl-actions"
    outputs: int = Field(ge=2)
    bias: bool = True
    step_value: StepValue = "single"

    @property
    def head(self) -> HeadLayout:
        """The classifier's tensors."""
        return HeadLayout(prefix="score", outputs=self.outputs, bias=self.bias)


class RepirlFamily(BoundFamily[RepirlRecipe]):
    """A version of this kind, ready to encode and to score."""

    def encode(self, trajectory: Trajectory) -> EncodedResponse:
        """See `Family.encode`. One read, of every token of the response."""
        texts = [message.content for message in trajectory.messages]
        self._check_least(*texts, trajectory.response)
        prompt = self._tokenizer.encode_prompt(trajectory.messages)
        response = self._tokenizer.encode_response(trajectory.response)
        ids = prompt + response.ids
        self.check_length(len(ids))
        starts = [start for start, _ in response.char_offsets]
        ends = [bisect_left(starts, step.char_end) for step in trajectory.steps]
        refuse_step_without_token(trajectory, ends)
        return EncodedResponse(
            ids=ids,
            reads=(LogprobRead(model=self._model, ids=ids, first=len(prompt), raw=True),),
            step_values=tuple(ends),
            first=len(prompt),
            char_offsets=response.char_offsets,
        )

    def score(self, encoded: EncodedTrajectory, outputs: Sequence[ReadOutput]) -> FamilyScores:
        """See `Family.score`."""
        assert isinstance(encoded, EncodedResponse)
        (output,) = outputs
        rewards = [math.tanh(value) for value in output.values]
        return scores_of(encoded, rewards, self.recipe.step_value)


def propose(checkpoint: Checkpoint) -> Proposal[RepirlRecipe]:
    """By class and head: no other classifier has a label per id of its vocabulary."""
    check_architecture(checkpoint, SPEC.architectures)
    outputs = checkpoint.shapes.get("score.weight", (0,))[0]
    if outputs < 2 or outputs != (size := checkpoint.config.get("vocab_size")):
        raise RecipeMismatch(
            f"score.weight has {outputs} outputs; this kind has one per id of the vocabulary"
            + (f", which has {size}" if outputs >= 2 else "")
        )
    bias = "score.bias" in checkpoint.shapes
    recipe = RepirlRecipe.model_validate({**checkpoint.asked, "outputs": outputs, "bias": bias})
    check_head(checkpoint, recipe.head)
    return Proposal(recipe=recipe)


SPEC = FamilySpec(
    name="repirl",
    architectures=("ForTokenClassification",),
    recipe=RepirlRecipe,
    bind=RepirlFamily,
    propose=propose,
    head=lambda recipe: recipe.head,
    has_cumulative=True,
)
