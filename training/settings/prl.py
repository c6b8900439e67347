"""Settings of PRL."""

from typing import Literal, Self

from pydantic import Field, model_validator

from training.settings.base import NotNegative, PolicySettings, Positive, Scale

Anchor = Literal["token", "step_start", "step_end"]


class Prl(PolicySettings):
    """Process reward learning: GRPO minus a detached KL-to-go (arXiv 2601.10201).

    `eta` is the inverse of the strength of regularisation: the coefficient is 1/eta, 0.005 to 0.01
    for answers of 1,000 tokens, 0.1 to 0.3 for a dozen. `anchor` says at which token of a step the
    sum is taken: "token" (every token its own) and "step_start" are exact, "step_end" is what the
    released code does and is biased. Steps are every `step_tokens` tokens, or end with
    `step_delimiter`. `divergence` k3 is the second version's alternative, which it advises against.
    `kl_in` "reward" is no PRL but what it is compared with: the response's KL in its reward.
    """

    type: Literal["prl"] = "prl"
    eta: Positive
    anchor: Anchor = "token"
    step_tokens: int | None = Field(default=None, ge=1)
    step_delimiter: str | None = Field(default=None, min_length=1)
    divergence: Literal["k1", "k3"] = "k1"
    scale: Scale = "unbiased"
    epsilon: NotNegative = 1e-6
    kl_in: Literal["advantage", "reward"] = "advantage"

    @property
    def needs_reference(self) -> bool:
        """See `AlgorithmSettings.needs_reference`: the log-ratio is the method."""
        return True

    @property
    def keeps_flat_groups(self) -> bool:
        """See `PolicySettings.keeps_flat_groups`: the pull to the reference remains."""
        return True

    @model_validator(mode="after")
    def _steps_are_defined_once(self) -> Self:
        if self.kl_in == "reward" and self.anchor != "token":
            raise ValueError(
                f'kl_in "reward" takes the KL of the whole response, for which anchor '
                f'"{self.anchor}" means nothing; leave anchor out, or set kl_in to "advantage"'
            )
        given = (self.step_tokens is not None) + (self.step_delimiter is not None)
        if self.anchor == "token" and given:
            raise ValueError(
                'anchor "token" knows no steps; leave step_tokens and step_delimiter out, or set '
                'anchor to "step_start"'
            )
        if self.anchor != "token" and given != 1:
            raise ValueError(
                f'anchor "{self.anchor}" needs to know where steps end: give either step_tokens '
                "or step_delimiter, and not both"
            )
        return self
