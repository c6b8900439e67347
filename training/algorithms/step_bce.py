"""A PRM trained by cross-entropy on step labels, recorded or made by Monte-Carlo rollouts.

"Let's Verify Step by Step" (arXiv 2305.20050) for human labels; Math-Shepherd (arXiv 2312.08935
§3.3) for labels from completions: a step is as good as the chance to get from it to the right
answer. The logit of a step is read at its last token: a head's output (with two classes, right
minus wrong), or the implicit PRM's Q there.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from training.settings.supervised import StepBce


def step_bce_losses(
    logits: Float[Tensor, "rows steps"],
    labels: Float[Tensor, "rows steps"],
    is_labelled: Bool[Tensor, "rows steps"],
    settings: StepBce,
) -> Float[Tensor, "rows steps"]:
    """−[w·l·log σ(z) + (1−l)·log σ(−z)] of each labelled step, 0 elsewhere; labels in [0, 1].

    To be summed and divided by the number of labelled steps of the whole batch. What follows a
    first error is usually unlabelled: nobody judged it.
    """
    logits = logits.masked_fill(~is_labelled, 0.0)
    labels = labels.masked_fill(~is_labelled, 0.0)
    right = -settings.right_weight * labels * logsigmoid(logits)
    wrong = -(1 - labels) * logsigmoid(-logits)
    return (right + wrong).masked_fill(~is_labelled, 0.0)


def monte_carlo_labels(
    is_correct: Bool[Tensor, "rows steps continuations"], settings: StepBce
) -> Float[Tensor, "rows steps"]:
    """A label per step from completions of the prefix that ends with it.

    "hard": whether any of them reached the answer (arXiv 2312.08935 Eq. 3); "soft": the share that
    did (Eq. 4). Hard labels grow with the number of completions, soft ones do not.
    """
    assert settings.labels != "step", "recorded labels are not made"
    if settings.labels == "hard":
        return is_correct.any(dim=-1).float()
    return is_correct.float().mean(dim=-1)


def prefix_logits(
    token_rewards: Float[Tensor, "rows time"], step_ends: Bool[Tensor, "rows time"], most: int
) -> tuple[Float[Tensor, "rows {most}"], Bool[Tensor, "rows {most}"]]:
    """Q at the last token of each step, and which of the `most` places hold a step.

    `token_rewards` are `implicit_prm.token_rewards`; `step_ends` marks each step's last token.
    """
    sums = token_rewards.cumsum(dim=1)
    count = step_ends.sum(dim=1)
    assert int(count.max()) <= most, f"{int(count.max())} steps in a row of {most}"
    is_step = torch.arange(most, device=sums.device) < count[:, None]
    # Both run row by row, in the order of the steps.
    logits = sums.new_zeros(len(sums), most).masked_scatter(is_step, sums[step_ends])
    return logits, is_step
