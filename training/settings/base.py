"""What the settings of all algorithms share. No torch here: a wrong job fails before it is loaded.

Closed and immutable, told apart by `type`; a combination that cannot mean what was wanted raises a
ValueError that says what to write instead.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

Normaliser = Literal["token_batch", "token_group", "sequence"]
KLEstimator = Literal["k1", "k2", "k3"]
# What a centred reward of a group is divided by: the standard deviation with ddof 1, with ddof 0,
# or nothing (Dr. GRPO, arXiv 2503.20783).
Scale = Literal["unbiased", "population", "none"]


class AlgorithmSettings(BaseModel):
    """Base of an algorithm's settings.

    `trains_policy` and `trains_prm` say which models it updates.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    trains_policy: ClassVar[bool] = False
    trains_prm: ClassVar[bool] = False

    @property
    def keeps_flat_groups(self) -> bool:
        """Whether a group whose rewards are all equal still teaches something."""
        return False

    @property
    def least_group_size(self) -> int:
        """The fewest rollouts of a problem that it can learn from."""
        return 1

    @property
    def needs_reference(self) -> bool:
        """Whether log-probs under the frozen reference model enter anything."""
        return False


class PolicySettings(AlgorithmSettings):
    """What every algorithm that updates the policy shares: the clipped surrogate (PPO, arXiv
    1707.06347 Eq. 7) and what is added to it.

    `clip_low` and `clip_high` bound the ratio to [1 − low, 1 + high] (apart: DAPO, arXiv 2503.14476
    §3.1). `dual_clip` bounds the loss of a negative advantage at that many times it (arXiv
    1912.09729 Eq. 5; verl's default is 3). `normaliser`: see `training.weighting`. `importance_cap`
    is the most that a token's sampler/trainer mismatch may weigh; 0 leaves it uncorrected.
    """

    trains_policy: ClassVar[bool] = True

    clip_low: float = Field(default=0.2, gt=0, lt=1, allow_inf_nan=False)
    clip_high: Positive = 0.2
    dual_clip: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    normaliser: Normaliser = "token_batch"
    kl_coefficient: NotNegative = 0.0
    kl_estimator: KLEstimator = "k3"
    entropy_coefficient: NotNegative = 0.0
    importance_cap: NotNegative = 2.0

    @property
    def least_group_size(self) -> int:
        """See `AlgorithmSettings.least_group_size`: a baseline needs another rollout."""
        return 2

    @property
    def needs_reference(self) -> bool:
        """See `AlgorithmSettings.needs_reference`."""
        return self.kl_coefficient > 0

    @property
    def keeps_flat_groups(self) -> bool:
        """See `AlgorithmSettings.keeps_flat_groups`: the loss has a term without outcomes.

        To drop such groups would make it depend on difficulty.
        """
        return self.kl_coefficient > 0 or self.entropy_coefficient > 0

    @model_validator(mode="after")
    def _cap_lets_agreement_pass(self) -> Self:
        if 0 < self.importance_cap < 1:
            raise ValueError(
                f"importance_cap {self.importance_cap:g} would scale down tokens on which sampler "
                "and trainer agree; set it to 1 or more, or to 0 for no correction"
            )
        return self

    @model_validator(mode="after")
    def _kl_has_a_gradient(self) -> Self:
        if self.kl_coefficient > 0 and self.kl_estimator == "k1":
            raise ValueError(
                f"kl_coefficient {self.kl_coefficient:g} with kl_estimator k1: as a loss k1 has an "
                'expected gradient of zero; set kl_estimator to "k2" or "k3", or use type "prl", '
                "which puts k1 into the advantage"
            )
        return self


class AccuracyFilter(BaseModel):
    """Problems are kept whose mean outcome reward lies in [`low`, `high`], both ends inclusive.

    Inclusive as in the code of PRIME and verl; PRIME's algorithm box prints strict inequalities.
    0 and 1 keep every problem.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: Share = 0.2
    high: Share = 0.8

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}: exchange them")
        return self


def set_beside(settings: BaseModel, names: tuple[str, ...]) -> list[str]:
    """Which of these fields were given another value than their default."""
    fields = type(settings).model_fields
    return [name for name in names if getattr(settings, name) != fields[name].default]
