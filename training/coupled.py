"""Exact micro-batches for losses that couple the rows of a batch: pairs, softmaxes, partition
functions.

Such a loss L(s_1, …, s_N) is a function of one score per row, and its gradient by the parameters is
Σ_i ∂L/∂s_i · ∇s_i. So: score all rows without gradient, take c = ∂L/∂s of those N numbers, and
then let each micro-batch contribute Σ_i c_i·s_i. Gao et al., "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup", arXiv 2101.06983 §3.2. It costs one forward more.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def score_gradients(
    loss_of: Callable[[Tensor], Tensor], scores: Float[Tensor, "rows"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows"]]:
    """The loss of the whole batch, detached, and its gradient by each row's score.

    `loss_of` takes the scores of all rows. A micro-batch then minimises `(gradients[rows] *
    scores_of(rows)).sum()`: its value means nothing, its gradient is its share.
    """
    leaf = scores.detach().requires_grad_()
    with torch.enable_grad():
        loss = loss_of(leaf)
        (gradients,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradients
