"""Settings of rePIRL."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from training.settings.base import (
    AccuracyFilter,
    NotNegative,
    PolicySettings,
    Positive,
    set_beside,
)

PrmLoss = Literal["paper", "mle", "discriminator", "ce"]
Weights = Literal["none", "importance", "tempered", "length", "clipped", "reference"]


class Repirl(PolicySettings):
    """A PRM by inverse reinforcement learning, and the policy that it rewards, in turn (arXiv
    2602.07832).

    `prm_loss`: see `training.algorithms.repirl`. `normalise` "prompt" has one partition function
    per problem, as p(τ|x) does; "pooled" is the paper's text; "response" is what the released code
    comes to, micro-batches of one, in which every weight is 1. `weights` stand in for the partition
    function; "reference" takes the reference model as base measure and suits long responses;
    "tempered" takes `temper`, "clipped" takes `weight_clip`. `read_out` "log_ratio" is log π_φ −
    log π_ref, "head" the tanh of a head's output for the token, in the state before it.
    `experts_in_partition` (for mle) counts demonstrations among the samples of the partition
    function, which keeps the loss bounded. `pseudo_experts` moves rollouts whose reward is above
    `expert_threshold` to the experts. `outcome_baseline`: see `training.algorithms.repirl`.
    """

    trains_prm: ClassVar[bool] = True

    type: Literal["repirl"] = "repirl"
    prm_loss: PrmLoss = "paper"
    normalise: Literal["prompt", "pooled", "response"] = "prompt"
    weights: Weights = "importance"
    temper: Positive | None = None
    weight_clip: Positive | None = None
    read_out: Literal["log_ratio", "head"] = "log_ratio"
    experts_in_partition: bool = True
    pseudo_experts: bool = True
    expert_threshold: float = Field(default=0.99, ge=0, lt=1, allow_inf_nan=False)
    estimator: Literal["rloo", "grpo"] = "rloo"
    outcome_baseline: Literal["sequence", "timestep"] = "sequence"
    process_normaliser: Literal["batch_max", "none"] = "batch_max"
    process_coefficient: Positive = 0.1
    outcome_coefficient: NotNegative = 1.0
    whiten: bool = True
    filter: AccuracyFilter = Field(default_factory=lambda: AccuracyFilter(low=0, high=1))

    @property
    def needs_reference(self) -> bool:
        """See `AlgorithmSettings.needs_reference`."""
        uses = self.read_out == "log_ratio" or self.weights == "reference"
        return uses or self.kl_coefficient > 0

    @model_validator(mode="after")
    def _weights_fit_the_loss(self) -> Self:
        for name, kind in (("temper", "tempered"), ("weight_clip", "clipped")):
            if (getattr(self, name) is not None) != (self.weights == kind):
                raise ValueError(f'{name} belongs to weights "{kind}": give both, or neither')
        meant: dict[PrmLoss, tuple[Weights, ...]] = {
            "mle": ("none", "importance", "reference"),
            "discriminator": ("importance", "reference"),
        }
        allowed = meant.get(self.prm_loss)
        if allowed and self.weights not in allowed:
            raise ValueError(
                f'prm_loss "{self.prm_loss}" is a likelihood, and weights "{self.weights}" would '
                f'make it none; set weights to one of {", ".join(allowed)}, or prm_loss to "paper"'
            )
        return self

    @model_validator(mode="after")
    def _one_response_has_no_partition_function(self) -> Self:
        given = self.prm_loss != "paper" or set_beside(self, ("weights",))
        if self.normalise == "response" and given:
            raise ValueError(
                'normalise "response" is the released form of prm_loss "paper", in which every '
                'weight is 1: leave prm_loss and weights out, or set normalise to "prompt"'
            )
        return self

    @model_validator(mode="after")
    def _belongs_to_the_loss(self) -> Self:
        if self.prm_loss == "ce" and (given := set_beside(self, ("weights", "normalise"))):
            raise ValueError(
                f'prm_loss "ce" has no partition function, so that {given[0]} means nothing; leave '
                'it out, or set prm_loss to "discriminator"'
            )
        if self.prm_loss != "mle" and set_beside(self, ("experts_in_partition",)):
            raise ValueError(
                f'experts_in_partition belongs to prm_loss "mle", and this is "{self.prm_loss}"; '
                "leave it out"
            )
        return self
