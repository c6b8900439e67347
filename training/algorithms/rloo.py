"""RLOO: REINFORCE with the mean reward of a problem's other rollouts as the baseline.

"Back to Basics: Revisiting REINFORCE-Style Optimization", arXiv 2402.14740 §2.3. Unbiased, and no
division by a standard deviation, so that problems of little variance weigh little.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.advantages import leave_one_out


def rloo_advantages(
    rewards: Float[Tensor, "rows"],
    mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, "rows"],
) -> Float[Tensor, "rows time"]:
    """A_i = r_i − mean_{j≠i} r_j at each of the response's tokens.

    Raises InvalidInput for a group of one.
    """
    return leave_one_out(rewards, group)[:, None] * mask
