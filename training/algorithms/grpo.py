"""GRPO: the outcome reward, standardised in its group, at each of the response's tokens.

DeepSeekMath, arXiv 2402.03300 §4.1.2. What varies between its users is in the settings: the ddof of
the standard deviation (which the paper does not name), whether there is one at all (Dr. GRPO, arXiv
2503.20783), ε, and the mean over tokens (the paper's is per sequence, which makes long wrong
answers cheap; DAPO's, arXiv 2503.14476 §3.3, is over the batch).
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.groups import standardise
from training.settings.outcome import Grpo, LambdaGrpo


def grpo_advantages(
    rewards: Float[Tensor, "rows"],
    mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, "rows"],
    settings: Grpo | LambdaGrpo,
) -> Float[Tensor, "rows time"]:
    """A_i = (r_i − mean)/(std + ε) at each of the response's tokens; 0 where rewards are all equal.

    Raises InvalidInput for a group of one.
    """
    standard = standardise(rewards, group, scale=settings.scale, epsilon=settings.epsilon)
    return standard[:, None] * mask
