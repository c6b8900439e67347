"""Settings of the algorithms that learn from outcome rewards alone."""

from typing import Literal

from training.settings.base import Normaliser, NotNegative, PolicySettings, Scale


class Rloo(PolicySettings):
    """REINFORCE with a leave-one-out baseline (arXiv 2402.14740 §2.3)."""

    type: Literal["rloo"] = "rloo"


class Grpo(PolicySettings):
    """Group relative policy optimisation (arXiv 2402.03300 §4.1.2).

    The reward is centred in its group and divided by its standard deviation plus `epsilon`. The
    paper names no ddof; TRL, verl and the λ-GRPO figure use the unbiased one. `normaliser`
    "sequence" is that paper's, "token_batch" DAPO's (arXiv 2503.14476 Eq. 12).
    """

    type: Literal["grpo"] = "grpo"
    scale: Scale = "unbiased"
    epsilon: NotNegative = 1e-4


class LambdaGrpo(PolicySettings):
    """GRPO with each token's loss divided by how many of its group share its prefix (arXiv
    2509.21154).

    `normaliser` is the paper's by default: over the tokens of the group. The authors' code runs
    the per-sequence mean, for which the paper's theorem does not hold.
    """

    type: Literal["lambda_grpo"] = "lambda_grpo"
    normaliser: Normaliser = "token_group"
    scale: Scale = "unbiased"
    epsilon: NotNegative = 1e-4
