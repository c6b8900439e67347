"""rePIRL: a PRM by inverse reinforcement learning, and the policy that it rewards, in turn.

"rePIRL: Learn PRM with Inverse RL for LLM Reasoning", arXiv 2602.07832. Each batch: rollouts and
demonstrations are split into an expert and a failed pool, the PRM takes a step (`irl_loss`), and
then the policy one, on its own rollouts, with

    A = whiten(c_p · A^p + c_o · A^o)

A^p from the PRM's token rewards, scaled by the batch's largest return, A^o from the verifier
(`irl_core_algos.py`; the paper only says RLOO). The released baseline is per time step, over the
rollouts still going on; for A^o that gives the tail of a long right answer its whole reward, so
that the sequence's own is the default there. c_p acts behind a division by a maximum: one outlier
changes what it means.

The policy's objective (Eq. 6) is E[R] + β·H(π); its second line in print has the sign of the
entropy wrong. Keep the PRM in float32: the released one is float16, which steps of its learning
rate, 3e-8, cannot move. Rewards are defined up to a constant per problem, and shaping.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.advantages import (
    active_leave_one_out,
    active_standardised,
    leave_one_out,
    scale_by_batch_max,
    suffix_sums,
    whiten,
)
from training.groups import standardise
from training.settings.repirl import Repirl


def head_rewards(
    head_outputs: Float[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]
) -> Float[Tensor, "rows time"]:
    """r_t = tanh of what the head says of token t.

    The released head reads the state *behind* token t (`rm.py`, padded path; its unpadded path the
    one before it, on which the token has no influence), and did not learn in 600 steps of a pilot
    from scratch: it must compare the token with the one that it would have written. So the head
    here has an output per action, read in the state before it: (W·h_{t−1} + b)[a_t].
    """
    return head_outputs.tanh().masked_fill(~mask, 0.0)


def log_ratio_rewards(
    logprobs: Float[Tensor, "rows time"],
    reference_logprobs: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
) -> Float[Tensor, "rows time"]:
    """r_t = log π_φ − log π_ref: with this read-out it differs from an implicit PRM by the loss."""
    return (logprobs - reference_logprobs).masked_fill(~mask, 0.0)


def pools(
    outcomes: Float[Tensor, "rows"], is_demonstration: Bool[Tensor, "rows"], settings: Repirl
) -> tuple[Bool[Tensor, "rows"], Bool[Tensor, "rows"]]:
    """(E, F). Right demonstrations are experts and wrong ones failed, as wrong rollouts are.

    Right rollouts are pseudo-experts, or without those in neither pool: Algorithm 1, line 7 weighs
    rollouts of outcome 0 alone. Whatever is not above the threshold is wrong, half-right code too.
    """
    is_right = outcomes > settings.expert_threshold
    return is_right & (is_demonstration | settings.pseudo_experts), ~is_right


def repirl_advantages(
    token_rewards: Float[Tensor, "rows time"],
    outcomes: Float[Tensor, "rows"],
    mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, "rows"],
    settings: Repirl,
) -> Float[Tensor, "rows time"]:
    """The policy's advantages on its own rollouts, the right ones among them.

    Raises InvalidInput for a group of one.
    """
    process = process_advantages(token_rewards.detach(), mask, group, settings)
    outcome = outcome_advantages(outcomes, mask, group, settings)
    combined = settings.process_coefficient * process + settings.outcome_coefficient * outcome
    return whiten(combined, mask) if settings.whiten else combined


def process_advantages(
    token_rewards: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, "rows"],
    settings: Repirl,
) -> Float[Tensor, "rows time"]:
    """A^p: returns from each token on, less those of the rollouts that still go on."""
    if settings.process_normaliser == "batch_max":
        token_rewards = scale_by_batch_max(token_rewards, mask)
    return _per_timestep(suffix_sums(token_rewards, mask), mask, group, settings)


def outcome_advantages(
    outcomes: Float[Tensor, "rows"],
    mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, "rows"],
    settings: Repirl,
) -> Float[Tensor, "rows time"]:
    """A^o: the reward falls at the last token, so that every token's return is the reward."""
    if settings.outcome_baseline == "timestep":
        return _per_timestep(outcomes[:, None] * mask, mask, group, settings)
    if settings.estimator == "grpo":
        return standardise(outcomes, group)[:, None] * mask
    return leave_one_out(outcomes, group)[:, None] * mask


def _per_timestep(
    returns: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, "rows"],
    settings: Repirl,
) -> Float[Tensor, "rows time"]:
    if settings.estimator == "grpo":
        return active_standardised(returns, mask, group)
    return active_leave_one_out(returns, mask, group)
