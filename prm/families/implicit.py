"""Implicit PRM: a step's reward is β times its log-ratio under a trained and a reference model.

    r_t = β · (log π_φ(y_t | x, y_<t) − log π_ref(y_t | x, y_<t))

"Free Process Rewards without Process Labels", arXiv 2412.01981, Eq. 3 and Proposition 3.1: the
running sum Q over a prefix is a soft value of it, and a step's process reward is the increase of Q
over the step. `step_value` chooses which of the two is the step's number ("single": the increase,
"accumulative": Q itself). A step ends at the last token that overlaps its characters.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from pydantic import Field

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.families.base import (
    EncodedTrajectory,
    FamilyScores,
    FamilySpec,
    LogprobRead,
    Proposal,
    ReadOutput,
    Recipe,
    RecipeMismatch,
    check_length,
    context_limit,
    step_score,
)
from prm.manifest import Finite, ModelRef, ModelVersion
from prm.types import TokenRewards, Trajectory


class ImplicitRecipe(Recipe):
    """β of the trained model, its reference, and which of the two values is a step's number."""

    name: Literal["implicit"] = "implicit"
    beta: Finite = Field(gt=0)
    step_value: Literal["single", "accumulative"] = "single"
    reference: ModelRef

    @property
    def references(self) -> tuple[ModelRef, ...]:
        """See `Recipe.references`."""
        return (self.reference,)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedResponse(EncodedTrajectory):
    """An encoded trajectory, and its response's tokens: `ids[first:]`, with a span each."""

    first: int
    char_offsets: tuple[tuple[int, int], ...]


class ImplicitFamily:
    """An implicit PRM version, ready to encode and to score."""

    def __init__(
        self, version: ModelVersion, recipe: ImplicitRecipe, tokenizer: ChatTokenizer
    ) -> None:
        self.recipe = recipe
        self._tokenizer = tokenizer
        self._models = (version.key, recipe.reference.key)
        self._context_limit = context_limit(version, recipe)

    def encode(self, trajectory: Trajectory) -> EncodedResponse:
        """See `Family.encode`. Both models read the response's tokens."""
        texts = [message.content for message in trajectory.messages]
        self._check_length(self._tokenizer.least_tokens(*texts, trajectory.response), "at least ")
        prompt = self._tokenizer.encode_prompt(trajectory.messages)
        response = self._tokenizer.encode_response(trajectory.response)
        self._check_length(len(prompt) + len(response.ids))
        starts = [start for start, _ in response.char_offsets]
        ids = prompt + response.ids
        return EncodedResponse(
            ids=ids,
            reads=tuple(LogprobRead(model=m, ids=ids, first=len(prompt)) for m in self._models),
            step_values=tuple(bisect_left(starts, step.char_end) for step in trajectory.steps),
            first=len(prompt),
            char_offsets=response.char_offsets,
        )

    def _check_length(self, length: int, about: str = "") -> None:
        check_length(length, self._context_limit, self._models[0], about)

    def score(self, encoded: EncodedTrajectory, outputs: Sequence[ReadOutput]) -> FamilyScores:
        """See `Family.score`."""
        assert isinstance(encoded, EncodedResponse)
        trained, reference = outputs
        rewards = token_rewards(trained.values, reference.values, beta=self.recipe.beta)
        raws = step_values(rewards, encoded.step_values)
        if self.recipe.step_value == "accumulative":
            raws = list(accumulate(raws))
        return FamilyScores(
            steps=tuple(map(step_score, raws)),
            tokens=TokenRewards(
                ids=encoded.ids[encoded.first :],
                char_offsets=encoded.char_offsets,
                rewards=rewards,
            ),
        )


def token_rewards(
    trained: Sequence[float], reference: Sequence[float], *, beta: float
) -> list[float]:
    """β · (log π_φ − log π_ref) per token (arXiv 2412.01981 Eq. 3)."""
    assert len(trained) == len(reference)
    return [beta * (ours - theirs) for ours, theirs in zip(trained, reference, strict=True)]


def step_values(rewards: Sequence[float], step_ends: Sequence[int]) -> list[float]:
    """Each step's process reward: Q at its last token minus Q at the previous step's last token.

    >>> step_values([1.0, 2.0, 4.0], [2, 3])
    [3.0, 4.0]
    """
    starts = [0, *step_ends[:-1]]
    return [math.fsum(rewards[start:end]) for start, end in zip(starts, step_ends, strict=True)]


def propose(checkpoint: Checkpoint) -> Proposal[ImplicitRecipe]:
    """Nothing in a checkpoint tells β or the reference: they must be named."""
    raise RecipeMismatch("an implicit PRM looks like any causal LM; name --family and --reference")


SPEC = FamilySpec(
    name="implicit",
    architectures=("ForCausalLM",),
    recipe=ImplicitRecipe,
    bind=ImplicitFamily,
    propose=propose,
)
