"""Settings of PRIME."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from training.settings.base import (
    AccuracyFilter,
    NotNegative,
    PolicySettings,
    Positive,
    set_beside,
)

Estimator = Literal["rloo", "grpo", "reinforce"]
Baseline = Literal["length_normalised", "official_code", "none"]


def _refuse_the_printed_form(value: Any) -> Any:
    if value == "paper":
        raise ValueError(
            'baseline "paper" (Eq. 5 as printed) takes other responses\' sums from every single '
            'token and is not implemented; use "length_normalised", which the authors describe, '
            'or "official_code"'
        )
    return value


class Prime(PolicySettings):
    """Process rewards from an implicit PRM that is trained online (arXiv 2502.01456).

    `estimator` and `baseline`: see `training.algorithms.prime`. `process_as` "value" uses the
    PRM as a baseline of the outcome reward (§5.4), "reward" as rewards. `process_normaliser`
    "batch_max" (the authors' code) takes β out of the policy's reward. `update` "after" scores
    rollouts with the PRM before it is trained on them (the paper's single forward), "before" with
    the PRM after that (double forward), "never" with the job's `prm` as it is: the frozen PRM of
    the paper's Figure 5. `reference` "behaviour" divides by the policy that wrote the rollouts in
    place of the frozen model. `prm_loss` "dpo" pairs right with wrong rollouts.
    """

    trains_prm: ClassVar[bool] = True

    type: Literal["prime"] = "prime"
    estimator: Estimator = "rloo"
    baseline: Annotated[Baseline, BeforeValidator(_refuse_the_printed_form)] = "length_normalised"
    process_as: Literal["reward", "value"] = "reward"
    process_normaliser: Literal["batch_max", "none"] = "batch_max"
    process_coefficient: Positive = 1.0
    outcome_coefficient: NotNegative = 1.0
    process_discount: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    whiten: bool = True
    beta: Positive = 0.05
    prm_loss: Literal["ce", "dpo"] = "ce"
    update: Literal["after", "before", "never"] = "after"
    reference: Literal["frozen", "behaviour"] = "frozen"
    filter: AccuracyFilter = Field(default_factory=AccuracyFilter)

    @property
    def least_group_size(self) -> int:
        """See `AlgorithmSettings.least_group_size`."""
        needs_pairs = self.prm_loss == "dpo"
        return 1 if self.estimator == "reinforce" and not needs_pairs else 2

    @property
    def needs_reference(self) -> bool:
        """See `AlgorithmSettings.needs_reference`."""
        return self.reference == "frozen" or self.kl_coefficient > 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.estimator != "rloo" and set_beside(self, ("baseline",)):
            raise ValueError(
                f'baseline "{self.baseline}" is a leave-one-out form, and estimator '
                f'"{self.estimator}" has its own; leave it out, or set estimator to "rloo"'
            )
        rewarding = ("estimator", "baseline", "process_normaliser", "process_discount")
        given = set_beside(self, (*rewarding, "process_coefficient", "outcome_coefficient"))
        if self.process_as == "value" and given:
            raise ValueError(
                f'process_as "value" is itself the baseline of the outcome reward, so that '
                f'{given[0]} means nothing; leave it out, or set process_as to "reward"'
            )
        return self
