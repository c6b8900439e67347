"""Implicit PRM: a step's reward is β times its log-ratio under a trained and a reference model.

    r_t = β · (log π_φ(y_t | x, y_<t) − log π_ref(y_t | x, y_<t))

"Free Process Rewards without Process Labels", arXiv 2412.01981, Eq. 3 and Proposition 3.1: the
running sum Q over a prefix is a soft value of it, and a step's process reward is the increase of Q
over the step. `step_value` chooses which of the two is the step's number ("single": the increase,
"accumulative": Q itself); Q is told beside it as `cumulative`. A step ends at the last token that
overlaps its characters.

Without a reference r_t = β · log π_φ, which the paper evaluates as "w/o ref" in its ablation of the
reference model: half the cost, nothing to subtract, and so scores below one half throughout. Its
threshold has to be fitted.

Training counts the end-of-turn token in the log-ratio; a step's own tokens do not hold it, and a
response that is being searched has none yet. `end_token` gives it, and what stands before it behind
the last step, to the last step. `reference_compat` (see `prm/families/published.py`) cuts where the
authors' script cuts.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, Self

from pydantic import Field, model_validator

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput, ModelFolderError
from prm.families.base import (
    EncodedTrajectory,
    FamilyScores,
    FamilySpec,
    LogprobRead,
    Proposal,
    ReadOutput,
    Recipe,
    RecipeMismatch,
    step_score,
)
from prm.families.bound import BoundFamily
from prm.families.proposing import check_causal
from prm.families.published import place_as_published
from prm.families.reading import Reading, read_as_written, read_joined
from prm.families.texts import refuse_control_tokens, step_field
from prm.manifest import Finite, ModelRef, ModelVersion
from prm.types import Message, TokenRewards, Trajectory

# A step's number: its own reward, or that of all steps up to its end.
StepValue = Literal["single", "accumulative"]


class ImplicitRecipe(Recipe):
    """β of the trained model, its reference, and which of the two values is a step's number.

    `reference` null is the form without one, and has to be said. `adapter`: the folder holds LoRA
    weights that are run on the reference's. `step_prefix` is written before every step that does
    not begin with one itself; `{n}` is the step's number, from 1 (EurusPRM: "Step {n}: ").
    """

    name: Literal["implicit"] = "implicit"
    beta: Finite = Field(gt=0)
    step_value: StepValue = "single"
    reference: ModelRef | None
    adapter: bool = False
    step_prefix: str | None = Field(default=None, min_length=1, max_length=64)
    end_token: bool = False
    reference_compat: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.adapter and self.reference is None:
            raise ValueError("adapter needs reference: the version whose weights it is run on")
        if self.step_prefix is not None and self.step_prefix.count("{n}") != 1:
            raise ValueError("step_prefix has to hold {n}, the step's number, once")
        return self

    @property
    def label(self) -> str:
        """See `Recipe.label`. Published boundaries are another way of reading, and say so."""
        return super().label + ("+reference_compat" if self.reference_compat else "")

    @property
    def references(self) -> tuple[ModelRef, ...]:
        """See `Recipe.references`."""
        return () if self.reference is None else (self.reference,)

    @property
    def adapter_base(self) -> ModelRef | None:
        """See `Recipe.adapter_base`."""
        return self.reference if self.adapter else None

    @property
    def raw_scale(self) -> float:
        """See `Recipe.raw_scale`: raw values are β times a log-ratio."""
        return self.beta


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedResponse(EncodedTrajectory):
    """An encoded trajectory, and its response's tokens: `ids[first:]`, with a span each."""

    first: int
    char_offsets: tuple[tuple[int, int], ...]


class ImplicitFamily(BoundFamily[ImplicitRecipe]):
    """An implicit PRM version, ready to encode and to score."""

    def __init__(
        self, version: ModelVersion, recipe: ImplicitRecipe, tokenizer: ChatTokenizer
    ) -> None:
        super().__init__(version, recipe, tokenizer)
        self._models = (version.key, *(reference.key for reference in recipe.references))
        self._end_of_turn = (_end_of_turn(version, tokenizer),) if recipe.end_token else ()

    def encode(self, trajectory: Trajectory) -> EncodedResponse:
        """See `Family.encode`. Every model reads the response's tokens."""
        texts = [message.content for message in trajectory.messages]
        self._check_least(*texts, trajectory.response)
        if self.recipe.reference_compat:
            return self._encode_as_published(trajectory)
        reading = read_as_written(trajectory, self.recipe.step_prefix)
        prompt = self._tokenizer.encode_prompt(trajectory.messages)
        response = self._tokenizer.encode_response(reading.text)
        ids = prompt + response.ids + self._end_of_turn
        starts = [start for start, _ in response.char_offsets]
        ends = [bisect_left(starts, end) for end in reading.step_ends]
        refuse_step_without_token(trajectory, ends)
        if self._end_of_turn:
            ends[-1] = len(ids) - len(prompt)
        offsets = list(response.char_offsets)
        offsets += [(len(reading.text), len(reading.text))] * len(self._end_of_turn)
        return self._encoded(ids, len(prompt), ends, offsets, reading)

    def _encode_as_published(self, trajectory: Trajectory) -> EncodedResponse:
        # Chat and texts are tokenised as one string there.
        refuse_control_tokens(trajectory, self._tokenizer)
        reading = read_joined(trajectory, self.recipe.step_prefix, "\n\n")
        places = place_as_published(
            self._tokenizer, trajectory.messages, reading, self.check_length
        )
        return self._encoded(places.ids, places.first, places.ends, places.offsets, reading)

    def _encoded(
        self,
        ids: tuple[int, ...],
        first: int,
        ends: Sequence[int],
        offsets: Sequence[tuple[int, int]],
        reading: Reading,
    ) -> EncodedResponse:
        self.check_length(len(ids))
        return EncodedResponse(
            ids=ids,
            reads=tuple(LogprobRead(model=m, ids=ids, first=first) for m in self._models),
            step_values=tuple(ends),
            first=first,
            char_offsets=tuple(reading.span_in_response(*span) for span in offsets),
        )

    def score(self, encoded: EncodedTrajectory, outputs: Sequence[ReadOutput]) -> FamilyScores:
        """See `Family.score`."""
        assert isinstance(encoded, EncodedResponse)
        trained, *reference = [output.values for output in outputs]
        rewards = token_rewards(trained, *reference, beta=self.recipe.beta)
        return scores_of(encoded, rewards, self.recipe.step_value)


def scores_of(
    encoded: EncodedResponse, rewards: Sequence[float], step_value: StepValue
) -> FamilyScores:
    """Step scores of token rewards: each step's sum, or the sum of all up to its end."""
    singles = step_values(rewards, encoded.step_values)
    sums = list(accumulate(singles))
    return FamilyScores(
        steps=tuple(
            replace(step_score(raw), cumulative=value)
            for raw, value in zip(
                sums if step_value == "accumulative" else singles, sums, strict=True
            )
        ),
        tokens=TokenRewards(
            ids=encoded.ids[encoded.first :],
            char_offsets=encoded.char_offsets,
            rewards=rewards,
        ),
    )


def token_rewards(
    trained: Sequence[float], reference: Sequence[float] | None = None, *, beta: float
) -> list[float]:
    """β · (log π_φ − log π_ref) per token (arXiv 2412.01981 Eq. 3); no reference is log π_ref = 0.

    >>> token_rewards([-1.0, -2.0], [-3.0, -1.0], beta=0.5)
    [1.0, -0.5]
    """
    if reference is None:
        return [beta * ours for ours in trained]
    assert len(trained) == len(reference)
    return [beta * (ours - theirs) for ours, theirs in zip(trained, reference, strict=True)]


def refuse_step_without_token(trajectory: Trajectory, ends: Sequence[int]) -> None:
    """Raises InvalidInput for a step that ends where the one before it ends."""
    for index, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if start == end:
            raise InvalidInput(
                f"step {index} has no token of its own: it ends inside the last token of the step "
                "before it; cut the response elsewhere",
                param=step_field(trajectory, index),
            )


def step_values(rewards: Sequence[float], step_ends: Sequence[int]) -> list[float]:
    """Each step's process reward: Q at its last token minus Q at the previous step's last token.

    >>> step_values([1.0, 2.0, 4.0], [2, 3])
    [3.0, 4.0]
    """
    starts = [0, *step_ends[:-1]]
    return [math.fsum(rewards[start:end]) for start, end in zip(starts, step_ends, strict=True)]


def _end_of_turn(version: ModelVersion, tokenizer: ChatTokenizer) -> int:
    """The token that the chat template writes behind what the assistant says."""
    said = "\ue000"  # stands in no template
    turns = (Message(role="user", content="0"), Message(role="assistant", content=said))
    try:
        text = tokenizer.render(turns, add_generation_prompt=False)
    except InvalidInput as error:
        raise ModelFolderError(version.folder, f"recipe.end_token: {error}") from error
    tail = tokenizer.encode_markup(text.rpartition(said)[2])
    if not tail or tokenizer.decode(tail[:1]):
        raise ModelFolderError(
            version.folder,
            "recipe.end_token: the chat template ends an assistant's turn with no control token",
        )
    return tail[0]


def propose(checkpoint: Checkpoint) -> Proposal[ImplicitRecipe]:
    """Nothing in a checkpoint tells β or the reference: they must be named."""
    check_causal(checkpoint)
    if not {"beta", "reference"} <= checkpoint.asked.keys():
        raise RecipeMismatch(
            "nothing in a checkpoint tells an implicit PRM, its β or its reference; name --beta, "
            "and --reference NAME@VERSION or --reference none"
        )
    recipe = ImplicitRecipe.model_validate(dict(checkpoint.asked))
    return Proposal(recipe=recipe, is_certain=False)


SPEC = FamilySpec(
    name="implicit",
    architectures=("ForCausalLM",),
    recipe=ImplicitRecipe,
    bind=ImplicitFamily,
    propose=propose,
    has_cumulative=True,
    as_published=lambda recipe: recipe.model_copy(update={"reference_compat": True}),
)
