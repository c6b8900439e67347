"""PRL: the outcome advantage minus, at each token, the KL cost of what is still to come.

"PRL: Process Reward Learning", arXiv 2601.10201 (its second version: "Future-KL Regularized
GRPO"). For E[R] − (1/η)·KL(π‖π_0) the exact policy gradient weighs ∇ log π(a_t) by R − (1/η)·S_t
with S_t = Σ_{j≥t} (log π − log π_0)_j (v2, Theorem 4.1). So, detached and after normalisation,

    ρ_t = A − S_t/η                              (v1, Algorithm 1, lines 11 to 16)

and the clipped surrogate on ρ, which is neither whitened nor normalised again. Where the sources
disagree: sums start at j = t (v1's definition of ρ starts behind it, which would delete the
restoring force, and its Figure 1 sums from the front); the extra −β·KL of v1's final loss is 0 in
its experiments.

Steps. The token at whose S a step's tokens are taken: `step_start` only adds past terms and stays
unbiased; `step_end`, which the released code does, leaves out the step's own cost but for its last
token. That code also fills steps leftwards by "non-zero", so that a value of exactly 0 takes its
neighbour's; here it goes by index. And it looks for a delimiter by its encoding's first id, which
is BOS for some tokenizers: give `delimiter_ends` all ids whose text ends the step.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.divergence import kl_to_go
from training.groups import standardise
from training.settings.prl import Anchor, Prl


def prl_advantages(
    rewards: Float[Tensor, "rows"],
    old_logprobs: Float[Tensor, "rows time"],
    reference_logprobs: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, "rows"],
    settings: Prl,
    *,
    step_ends: Bool[Tensor, "rows time"] | None = None,
) -> Float[Tensor, "rows time"]:
    """ρ, a constant. `old_logprobs` are the trainer's, at the temperature that was sampled at.

    A group whose rewards are all equal has A = 0 and is still pulled towards π_0: keep it.
    Raises InvalidInput for a group of one.
    """
    outcome = standardise(rewards, group, scale=settings.scale, epsilon=settings.epsilon)
    to_go = kl_to_go(old_logprobs, reference_logprobs, mask, settings.divergence)
    if settings.anchor != "token":
        assert step_ends is not None, f'anchor "{settings.anchor}" needs step_ends'
        to_go = at_anchor(to_go, step_ends, mask, settings.anchor)
    return (outcome[:, None] - to_go / settings.eta).masked_fill(~mask, 0.0)


def at_anchor(
    values: Float[Tensor, "rows time"],
    step_ends: Bool[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    anchor: Anchor,
) -> Float[Tensor, "rows time"]:
    """At each token of a step, the value at the step's first or last token."""
    if anchor == "token":
        return values
    columns = torch.arange(values.shape[1], device=values.device).expand(values.shape)
    if anchor == "step_end":
        beyond = values.shape[1] - 1
        marked = torch.where(step_ends, columns, beyond)
        places = marked.flip(1).cummin(dim=1).values.flip(1)
    else:
        starts = mask & ~_shifted(mask & ~step_ends)
        places = torch.where(starts, columns, 0).cummax(dim=1).values
    return values.gather(1, places).masked_fill(~mask, 0.0)


def fixed_length_ends(
    mask: Bool[Tensor, "rows time"], step_tokens: int
) -> Bool[Tensor, "rows time"]:
    """Marks every `step_tokens`-th response token, and the last one."""
    place = mask.cumsum(dim=1)
    return mask & ((place % step_tokens == 0) | (place == mask.sum(dim=1, keepdim=True)))


def delimiter_ends(
    ids: Int[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    delimiter_ids: Int[Tensor, "delimiters"],
) -> Bool[Tensor, "rows time"]:
    """Marks every response token that is a delimiter, and the last one."""
    is_last = mask.cumsum(dim=1) == mask.sum(dim=1, keepdim=True)
    return mask & (torch.isin(ids, delimiter_ids) | is_last)


def value_targets(
    log_ratio: Float[Tensor, "rows time"],
    values: Float[Tensor, "rows prefixes"],
    starts: Int[Tensor, "rows prefixes"],
    ends: Int[Tensor, "rows prefixes"],
    *,
    eta: float,
) -> Float[Tensor, "rows prefixes"]:
    """y_l = v_p − (1/η)·Σ_{l<j≤p} (log π − log π_0)_j, detached: v1 §3.3, used in no experiment.

    What a learnt value would be regressed on; here it tells how far a policy is from the optimum.
    `starts` are l and `ends` p, the indices of prefixes' last tokens (−1: the empty prefix);
    `values` are r_u of the longer prefix, or the outcome reward where it is the whole response. At
    the optimum of the objective every completion gives the same y (Theorem 3.3): the soft value.
    """
    sums = torch.nn.functional.pad(log_ratio.detach().cumsum(dim=1), (1, 0))
    between = sums.gather(1, ends + 1) - sums.gather(1, starts + 1)
    return values.detach() - between / eta


def kl_in_reward_advantages(
    rewards: Float[Tensor, "rows"],
    sequence_kl: Float[Tensor, "rows"],
    group: Int[Tensor, "rows"],
    settings: Prl,
) -> Float[Tensor, "rows"]:
    """R − S_1/η, then normalised (`kl_in` "reward"): the baseline that v2 (App. F.1) sees collapse.

    A standardised binary advantage is the score of 2·arcsin √p (v2, Proposition 3.1), whose gain
    depends on p; a KL that goes through it is scaled by that, problem by problem.
    """
    reward = rewards - sequence_kl / settings.eta
    return standardise(reward, group, scale=settings.scale, epsilon=settings.epsilon)


def _shifted(flags: Bool[Tensor, "rows time"]) -> Bool[Tensor, "rows time"]:
    """One column later, False in the first."""
    return torch.nn.functional.pad(flags[:, :-1], (1, 0))
