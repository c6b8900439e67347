"""Settings of what is trained on recorded responses: SFT and two kinds of PRM."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from training.settings.base import AlgorithmSettings, Positive, set_beside


class Sft(AlgorithmSettings):
    """Supervised fine-tuning of a policy on responses."""

    trains_policy: ClassVar[bool] = True

    type: Literal["sft"] = "sft"


class ImplicitPrm(AlgorithmSettings):
    """An implicit PRM from outcome labels (arXiv 2412.01981).

    `beta`: 0.05 in the paper, for responses of hundreds of tokens. `loss`: see
    `training.algorithms.implicit_prm`. `pairing` (for dpo and nca): "cross" pairs every right with
    every wrong response of a problem, as the authors' code does; "one" gives each right response
    one counterpart, as their text reads. The weights of right and wrong responses are KTO's.

    The loss is of whole responses; `step_value`, `step_prefix` and `end_token` say how the steps of
    the PRM are read where it is served (`prm/families/implicit.py`), as of the one it began as.
    """

    trains_prm: ClassVar[bool] = True

    type: Literal["implicit_prm"] = "implicit_prm"
    loss: Literal["ce", "dpo", "kto", "nca"] = "ce"
    beta: Positive = 0.05
    pairing: Literal["cross", "one"] = "cross"
    right_weight: Positive = 1.0
    wrong_weight: Positive = 1.0
    step_value: Literal["single", "accumulative"] = "single"
    step_prefix: str | None = Field(default=None, min_length=1, max_length=64)
    end_token: bool = False

    @property
    def takes_pairs(self) -> bool:
        """Whether its loss is of a right and a wrong response of one problem."""
        return self.loss in ("dpo", "nca")

    @property
    def least_group_size(self) -> int:
        """See `AlgorithmSettings.least_group_size`: a pair has two."""
        return 2 if self.takes_pairs else 1

    @property
    def needs_reference(self) -> bool:
        """See `AlgorithmSettings.needs_reference`: the reward is a log-ratio."""
        return True

    @model_validator(mode="after")
    def _belongs_to_the_loss(self) -> Self:
        if not self.takes_pairs and set_beside(self, ("pairing",)):
            raise ValueError(
                f'pairing means nothing to loss "{self.loss}", which takes responses one by one; '
                'leave it out, or set loss to "dpo" or "nca"'
            )
        if self.step_prefix is not None and self.step_prefix.count("{n}") != 1:
            raise ValueError("step_prefix has to hold {n}, the step's number, once")
        weights = set_beside(self, ("right_weight", "wrong_weight"))
        if self.loss != "kto" and weights:
            raise ValueError(
                f'{weights[0]} means nothing to loss "{self.loss}"; leave it out, or set loss to '
                '"kto"'
            )
        return self


class StepBce(AlgorithmSettings):
    """A PRM trained by cross-entropy on a label per step.

    `labels`: "step" takes those that are there, a task's own or recorded ones; "soft" and "hard"
    make them from `continuations` completions of each prefix (Math-Shepherd, arXiv 2312.08935 Eq. 3
    and 4). `right_weight` scales the loss of right steps, which outnumber wrong ones. `read_out`: a
    head with two classes, or the implicit PRM's Q (β · log-ratio up to the step's end).
    """

    trains_prm: ClassVar[bool] = True

    type: Literal["step_bce"] = "step_bce"
    labels: Literal["step", "soft", "hard"] = "step"
    continuations: int = Field(default=8, ge=1)
    right_weight: Positive = 1.0
    read_out: Literal["head", "log_ratio"] = "head"
    beta: Positive = 0.05

    @property
    def needs_reference(self) -> bool:
        """See `AlgorithmSettings.needs_reference`."""
        return self.read_out == "log_ratio"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.labels == "step" and set_beside(self, ("continuations",)):
            raise ValueError(
                "continuations are sampled to make labels; with recorded ones leave it out, or "
                'set labels to "soft" or "hard"'
            )
        if self.read_out == "head" and set_beside(self, ("beta",)):
            raise ValueError(
                "beta scales a log-ratio, and a head has none; leave it out, or set read_out to "
                '"log_ratio"'
            )
        return self
