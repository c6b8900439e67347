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
from itertools import accumulate

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput
from prm.families.base import (
    EncodedTrajectory,
    FamilyScores,
    FamilySpec,
    LogprobRead,
)
from prm.manifest import ModelVersion, PrmManifest
from prm.types import StepScore, TokenRewards, Trajectory


class ImplicitFamily:
    """An implicit PRM version, ready to encode and to score."""

    name = "implicit"

    def __init__(self, version: ModelVersion, tokenizer: ChatTokenizer) -> None:
        assert isinstance(version.manifest, PrmManifest)
        self._tokenizer = tokenizer
        self._model = version.key
        self._context_limit = version.context_limit
        self._beta = version.manifest.beta
        self._step_value = version.manifest.step_value
        reference = version.manifest.reference
        self._reference = f"{reference.name}@{reference.version}"

    def encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        """See `Family.encode`."""
        texts = [message.content for message in trajectory.messages]
        self._check_length(self._tokenizer.least_tokens(*texts, trajectory.response), "at least ")
        prompt = self._tokenizer.encode_prompt(trajectory.messages)
        response = self._tokenizer.encode_response(trajectory.response)
        self._check_length(len(prompt) + len(response.ids))
        starts = [start for start, _ in response.char_offsets]
        return EncodedTrajectory(
            ids=prompt + response.ids,
            first=len(prompt),
            step_ends=tuple(bisect_left(starts, step.char_end) for step in trajectory.steps),
            char_offsets=response.char_offsets,
        )

    def _check_length(self, length: int, about: str = "") -> None:
        if length > self._context_limit:
            raise InvalidInput(
                f"the item is {about}{length} tokens long, and {self._model} reads at most "
                f"{self._context_limit}; send fewer or shorter steps"
            )

    def reads(self, encoded: EncodedTrajectory) -> Sequence[LogprobRead]:
        """The response's log-probs under the trained and under the reference model."""
        return [
            LogprobRead(model=model, ids=encoded.ids, first=encoded.first)
            for model in (self._model, self._reference)
        ]

    def score(self, encoded: EncodedTrajectory, outputs: Sequence[Sequence[float]]) -> FamilyScores:
        """See `Family.score`."""
        trained, reference = outputs
        rewards = token_rewards(trained, reference, beta=self._beta)
        raws = step_values(rewards, encoded.step_ends)
        if self._step_value == "accumulative":
            raws = list(accumulate(raws))
        return FamilyScores(
            steps=tuple(StepScore(raw=raw, score=sigmoid(raw)) for raw in raws),
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


def sigmoid(value: float) -> float:
    """1 / (1 + e^-value), without overflow at either end."""
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    return math.exp(value) / (1.0 + math.exp(value))


SPEC = FamilySpec(name=ImplicitFamily.name, architecture_suffix="ForCausalLM", bind=ImplicitFamily)
