"""rePIRL: its losses on worked numbers, by enumeration, and the methods that it has as cases."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from prm.errors import InvalidInput
from tests.training.algorithms.trees import LEAVES, STATES, table_of, token_logprobs, token_values
from tests.training.vectors import block, close, doubles, flags, one_group
from training.advantages import active_standardised, leave_one_out, scale_by_batch_max
from training.algorithms.implicit_prm import ce_losses, dpo_losses
from training.algorithms.irl_loss import IrlBatch, IrlLoss, discriminator_losses, irl_loss
from training.algorithms.irl_weights import (
    effective_sizes,
    group_logsumexp,
    log_weights,
    normalised_weights,
    self_consistent_log_z,
)
from training.algorithms.repirl import (
    head_rewards,
    log_ratio_rewards,
    outcome_advantages,
    pools,
    process_advantages,
    repirl_advantages,
)
from training.settings import Repirl


def test_token_rewards_of_a_head() -> None:
    inputs, expected = block("repirl.token_rewards")
    mask = flags(inputs["mask"])
    rewards = head_rewards(doubles(inputs["head_output_pre_tanh"]), mask)
    close(rewards, expected["r"])
    close(rewards.sum(1), expected["R_sum"])
    close(rewards.sum(1) / mask.sum(1), expected["r_mean"])


def test_right_rollouts_join_the_experts_and_wrong_demonstrations_leave_them() -> None:
    inputs, expected = block("repirl.pool_split")
    outcomes = doubles([*inputs["policy_outcome"], *inputs["expert_is_expert_flag"]])
    demonstrations = torch.arange(8) >= 4
    experts, failed = pools(outcomes, demonstrations, Repirl())
    for pool, name in ((experts, "expert_pool"), (failed, "policy_pool")):
        assert pool[:4].nonzero().flatten().tolist() == expected[name]["policy_idx"]
        assert pool[4:].nonzero().flatten().tolist() == expected[name]["expert_idx"]
    alone, still_failed = pools(outcomes, demonstrations, Repirl(pseudo_experts=False))
    assert not alone[:4].any()
    assert torch.equal(still_failed, failed)


WEIGHTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {"weights": "none"}),
    ("paper_seq(Eq.4)", {"weights": "importance"}),
    ("tempered_alpha0.1", {"weights": "tempered", "temper": 0.1}),
    ("length_norm", {"weights": "length"}),
    ("ref_base", {"weights": "reference"}),
)


@pytest.mark.parametrize(("key", "changes"), WEIGHTS)
def test_importance_weights(key: str, changes: dict[str, Any]) -> None:
    inputs, expected = block("repirl.importance_weights")
    mask, every, group = flags(inputs["mask"]), torch.ones(3).bool(), one_group(3)
    log_w = log_weights(
        doubles(inputs["r"]).sum(1),
        mask.sum(1),
        doubles(inputs["logp_policy"]).sum(1),
        doubles(inputs["logp_base(pi_ref)"]).sum(1),
        every,
        group,
        Repirl.model_validate(changes),
    )
    close(log_w, expected[key]["log_w"])
    weights = normalised_weights(log_w, every, group)
    close(weights, expected[key]["w_norm"])
    share = effective_sizes(weights, every, group).item()
    assert 3 * share == pytest.approx(expected[key]["ESS"])


def test_clipped_importance_weights() -> None:
    inputs, expected = block("repirl.importance_weights_clipped")
    settings = Repirl(weights="clipped", weight_clip=inputs["c"])
    every, group = torch.ones(3).bool(), one_group(3)
    sums = doubles(inputs["log_w"])
    log_w = log_weights(
        sums, torch.ones(3).long(), torch.zeros(3).double(), None, every, group, settings
    )
    close(log_w, expected["log_w_clipped"])
    close(normalised_weights(log_w, every, group), expected["w_norm"])


def test_weights_of_each_problem() -> None:
    inputs, expected = block("repirl.importance_weights_grouped")
    sums, logprobs = doubles(inputs["R"]), doubles(inputs["logp"])
    group, every = torch.tensor(inputs["prompt_id"]), torch.ones(5).bool()
    close(sums - logprobs, expected["log_w"])
    pooled = normalised_weights(sums - logprobs, every, one_group(5))
    close(pooled, expected["w_batch_pooled(paper/code)"])
    per_problem = normalised_weights(sums - logprobs, every, group) / 2
    close(per_problem, expected["w_per_prompt"])
    # The loss weighs them so: its gradient by R̄ of a failed rollout.
    for normalise, key in (
        ("pooled", "w_batch_pooled(paper/code)"),
        ("prompt", "w_per_prompt"),
    ):
        leaf = torch.cat([sums, doubles([0.0, 0.0])]).requires_grad_()
        batch = make_batch(
            torch.cat([group, torch.tensor([0, 1])]),
            torch.cat([logprobs, doubles([-1.0, -1.0])]),
            is_expert=torch.arange(7) >= 5,
        )
        settings = Repirl.model_validate({"normalise": normalise})
        (gradient,) = torch.autograd.grad(irl_loss(leaf, batch, settings).loss, leaf)
        close(gradient[:5], expected[key])


def test_the_paper_loss_and_its_gradient() -> None:
    inputs, expected = block("repirl.prm_loss")
    masks = flags([*inputs["mask_policy"], *inputs["mask_expert"]])
    tokens = doubles([*inputs["r_policy"], *inputs["r_expert"]]).requires_grad_()
    sums, experts = (tokens * masks).sum(1), torch.arange(5) >= 3
    logprobs = sums.detach() - torch.cat([doubles(inputs["w_norm"]).log(), doubles([0, 0])])
    batch = make_batch(one_group(5), logprobs, experts, masks.sum(1))
    found = irl_loss(sums, batch, Repirl())
    close(found.weights[:3], inputs["w_norm"])
    assert found.loss.item() == pytest.approx(expected["loss"], abs=1e-8)
    means = (sums / masks.sum(1)).detach()
    close(means[:3], expected["rbar_policy"])
    close(means[3:], expected["rbar_expert"])
    (gradient,) = torch.autograd.grad(found.loss, tokens)
    close(gradient[:3], expected["dL_dr_policy"])
    close(gradient[3:], expected["dL_dr_expert"])


def test_a_softmax_over_one_response_weighs_nothing() -> None:
    inputs, expected = block("repirl.prm_loss_microbatch1_degenerate")
    items = inputs["items_in_minibatch_order"]
    parts: list[IrlLoss] = []
    for kind, mean in items:
        batch = make_batch(one_group(1), doubles([-3.0]), torch.tensor([kind == "expert"]))
        parts.append(irl_loss(doubles([mean]), batch, Repirl(normalise="pooled")))
    failed = [part for part, (kind, _) in zip(parts, items, strict=True) if kind != "expert"]
    weights = [part.weights.item() for part in failed]
    assert weights == pytest.approx(expected["per_item_weight"][: len(weights)])
    released = sum(part.loss.item() for part in parts) / inputs["gradient_accumulation"]
    assert released == pytest.approx(expected["minibatch_loss"])
    sums = doubles([mean for _, mean in items])
    experts = torch.tensor([kind == "expert" for kind, _ in items])
    at_once = irl_loss(
        sums, make_batch(one_group(5), torch.zeros(5).double(), experts),
        Repirl(normalise="response"),
    )  # fmt: skip
    assert at_once.loss.item() == pytest.approx(expected["minibatch_loss"])
    assert at_once.weights[~experts].tolist() == [1, 1, 1]
    weighted, _ = block("repirl.prm_loss")
    logs = torch.zeros(5).double()
    logs[~experts] = doubles(weighted["w_norm"]).log()
    for weights_kind, key in (
        ("none", "loss_with_uniform_pool_weights"),
        ("importance", "loss_with_paper_weights"),
    ):
        batch = make_batch(one_group(5), sums - logs, experts)
        settings = Repirl.model_validate({"weights": weights_kind})
        assert irl_loss(sums, batch, settings).loss.item() == pytest.approx(expected[key])


def test_the_likelihood_and_its_partition_function() -> None:
    inputs, expected = block("repirl.mle_objective")
    sums = doubles([*inputs["R_policy"], *inputs["R_expert"]]).requires_grad_()
    logprobs = doubles([*inputs["logp_policy_seq"], 0.0, 0.0])
    experts = torch.arange(5) >= 3
    batch = make_batch(one_group(5), logprobs, experts)
    settings = Repirl(prm_loss="mle", experts_in_partition=False)
    loss = irl_loss(sums, batch, settings).loss
    assert loss.item() == pytest.approx(expected["objective"])
    log_z = group_logsumexp(sums - logprobs, ~experts, one_group(5)) - math.log(3)
    assert log_z.item() == pytest.approx(expected["log_Z_hat"])
    (gradient,) = torch.autograd.grad(loss, sums)
    close(gradient[:3], expected["dlogZ_dR_policy"])
    close(gradient[3:], [-0.5, -0.5])


def test_importance_sampling_gives_the_partition_function() -> None:
    inputs, expected = block("repirl.partition_function")
    sums = token_values(table_of(inputs["token_reward"])).sum(1)
    close(sums, [expected["R_seq"][leaf] for leaf in LEAVES])
    policy = token_logprobs(table_of(inputs["theta_logits"])).sum(1)
    reference = token_logprobs(table_of(inputs["theta0_logits"])).sum(1)
    every, group, lengths = torch.ones(8).bool(), one_group(8), torch.full((8,), 3)
    uniform = log_weights(sums, lengths, policy, None, every, group, Repirl())
    exact = group_logsumexp(policy + uniform, every, group)
    assert exact.item() == pytest.approx(expected["log_Z_uniform"])
    assert sums.logsumexp(0).item() == pytest.approx(expected["log_Z_uniform"])
    based = log_weights(sums, lengths, policy, reference, every, group, Repirl(weights="reference"))
    over_reference = group_logsumexp(policy + based, every, group)
    assert over_reference.item() == pytest.approx(expected["log_Z_ref"])
    drawn = torch.tensor([LEAVES.index(leaf) for leaf in inputs["five_samples"]])
    weights = uniform[drawn]
    assert weights.exp().mean().item() == pytest.approx(expected["Z_hat_from_five_samples"])
    close(normalised_weights(weights, every[:5], one_group(5)), expected["w_norm_five_samples"])


def test_the_policy_of_maximum_entropy() -> None:
    inputs, expected = block("repirl.maxent_soft_optimal")
    beta, rewards = inputs["beta"], table_of(inputs["token_reward"])
    sums = token_values(rewards).sum(1)
    # Over all sequences, the weights of R/β under the uniform policy are the optimal policy.
    every, group = torch.ones(8).bool(), one_group(8)
    best = normalised_weights(sums / beta, every, group)
    close(best, [expected["pi_star_seq"][leaf] for leaf in LEAVES])
    values = {}
    for state in STATES:
        prefix = "" if state == "root" else state
        behind = torch.tensor([leaf.startswith(prefix) for leaf in LEAVES])
        before = token_values(rewards)[:, : len(prefix)].sum(1)
        values[state] = beta * group_logsumexp((sums - before) / beta, behind, group).item()
        chance = best[behind].reshape(2, -1).sum(1) / best[behind].sum()
        close(chance, expected["pi_star"][state])
    assert values == pytest.approx(expected["V_star"], abs=1e-8)
    entropy = -(best * best.log()).sum()
    assert entropy.item() == pytest.approx(expected["entropy_H"])
    objective = best @ sums + beta * entropy
    assert objective.item() == pytest.approx(expected["objective_ER_plus_betaH"])
    assert objective.item() == pytest.approx(values["root"])
    printed = best @ sums - beta * entropy
    wanted = expected["second_line_of_Eq6_as_printed(ER + beta E log pi)"]
    assert printed.item() == pytest.approx(wanted)


def test_a_discriminator_is_a_likelihood_where_z_is_consistent() -> None:
    inputs, expected = block("repirl.gan_equivalence")
    expert, policy = doubles(inputs["expert_dist"]), doubles(inputs["policy_dist"])
    rewards, group = doubles(inputs["R"]), one_group(4)
    logits = rewards - policy.log()
    log_z = self_consistent_log_z(logits, expert + policy, group)
    assert log_z.item() == pytest.approx(expected["self_consistent_log_Z"], abs=1e-7)
    close(torch.sigmoid(logits - log_z), expected["D"])
    leaf = rewards.clone().requires_grad_()
    bce = cross_entropy(leaf - policy.log() - log_z, expert, policy)
    (gradient,) = torch.autograd.grad(-bce, leaf)
    close(gradient, expected["grad_discriminator"])
    # The likelihood under samples of the mixture ½(experts + policy), whose density is known.
    density = ((policy + torch.exp(rewards - log_z)) / 2).detach()
    share = (expert + policy) / 2
    mixture = expert @ leaf - torch.logsumexp(share.log() + leaf - density.log(), 0)
    (gradient,) = torch.autograd.grad(mixture, leaf)
    close(gradient, expected["grad_mixture_IS_likelihood"])
    other = expected["at_logZ_0.3"]
    close(torch.sigmoid(logits - 0.3), other["D"])
    bce = cross_entropy(leaf - policy.log() - 0.3, expert, policy)
    assert bce.item() == pytest.approx(other["BCE"])
    (gradient,) = torch.autograd.grad(-bce, leaf)
    close(gradient, other["grad_discriminator"])


def test_the_discriminator_loss_is_that_cross_entropy_on_samples() -> None:
    # Ten samples of each, in the proportions of the two distributions.
    inputs, expected = block("repirl.gan_equivalence")
    of_expert = [leaf for leaf, p in enumerate(inputs["expert_dist"]) for _ in range(round(10 * p))]
    of_policy = [leaf for leaf, p in enumerate(inputs["policy_dist"]) for _ in range(round(10 * p))]
    drawn, experts = torch.tensor(of_expert + of_policy), torch.arange(20) < 10
    rewards = doubles(inputs["R"]).requires_grad_()
    batch = make_batch(one_group(20), doubles(inputs["policy_dist"]).log()[drawn], experts)
    found = irl_loss(rewards[drawn], batch, Repirl(prm_loss="discriminator"))
    (gradient,) = torch.autograd.grad(-found.loss, rewards)
    close(gradient, expected["grad_discriminator"])


def test_the_linear_loss_pushes_towards_the_sign_of_the_occupancies() -> None:
    inputs, expected = block("repirl.linear_critic_optimum")
    kinds = len(expected["dL_dr"])
    rewards = torch.zeros(kinds + 1).double().requires_grad_()
    drawn: list[int] = []
    for occupancy in (inputs["expert_occupancy"], inputs["policy_occupancy"]):
        tokens = [kind for kind, share in enumerate(occupancy) for _ in range(round(20 * share))]
        drawn += tokens + [kinds] * (20 - len(tokens))
    batch = make_batch(one_group(40), torch.zeros(40).double(), torch.arange(40) < 20)
    found = irl_loss(rewards[torch.tensor(drawn)], batch, Repirl(weights="none"))
    (gradient,) = torch.autograd.grad(found.loss, rewards)
    close(gradient[:kinds], expected["dL_dr"])
    close(-gradient[:kinds].round(decimals=9).sign(), expected["r_opt"])


def test_advantages_with_a_baseline_per_time_step() -> None:
    inputs, expected = block("repirl.rloo_advantage")
    scores, mask = doubles(inputs["rm_scores"]), flags(inputs["mask"])
    labels, group = doubles(inputs["labels"]), one_group(inputs["n"])
    settings = Repirl(
        outcome_baseline="timestep",
        process_coefficient=inputs["coef_process"],
        outcome_coefficient=inputs["coef_outcome"],
    )
    close(scale_by_batch_max(scores, mask), expected["scores_normalised"])
    close(process_advantages(scores, mask, group, settings), expected["A_process"])
    close(outcome_advantages(labels, mask, group, settings), expected["A_outcome"])
    plain = settings.model_copy(update={"whiten": False})
    ours = repirl_advantages(scores, labels, mask, group, plain)
    close(ours, expected["A_combined_before_whiten"])
    close(repirl_advantages(scores, labels, mask, group, settings), expected["A_whitened"])
    textbook = expected["A_outcome_sequence_level_RLOO(textbook)"]
    close(leave_one_out(labels, group), textbook)
    default = outcome_advantages(labels, mask, group, Repirl())
    close(default, doubles(textbook)[:, None] * mask)


def test_the_grpo_variant_and_its_lonely_tail() -> None:
    inputs, expected = block("repirl.grpo_advantage")
    scores, mask = doubles(inputs["scores_normalised"]), flags(inputs["mask"])
    returns = scores.flip(1).cumsum(1).flip(1) * mask
    released = active_standardised(returns, mask, one_group(4), alone="released")
    close(released, expected["A_process_grpo"])
    settings = Repirl(estimator="grpo", process_normaliser="none")
    ours = process_advantages(scores, mask, one_group(4), settings)
    close(ours[:, :5], doubles(expected["A_process_grpo"])[:, :5])
    assert ours[0, 5].item() == 0


def test_dpo_is_the_likelihood_of_a_pair() -> None:
    inputs, expected = block("repirl.dpo_as_two_sample_irl")
    # Base π_ref, π_φ/π_ref = exp(R), and the partition function from the pair itself: one sample
    # each of a policy that draws both alike.
    sums = doubles([inputs["R_w"], inputs["R_l"]]).requires_grad_()
    batch = make_batch(one_group(2), torch.zeros(2).double(), torch.tensor([True, False]))
    loss = irl_loss(sums, batch, Repirl(prm_loss="mle")).loss + math.log(2)
    assert loss.item() == pytest.approx(expected["lhs"])
    dpo = dpo_losses(sums[:1], sums[1:], beta=1.0).sum()
    assert dpo.item() == pytest.approx(expected["rhs"])
    ours, theirs = (torch.autograd.grad(value, sums)[0] for value in (loss, dpo))
    close(ours, theirs, atol=1e-12)


def test_the_implicit_prm_is_its_cross_entropy_on_outcome_labels() -> None:
    # With a log-ratio for reward, outcome labels in place of experts and as many of each kind.
    generator = torch.Generator().manual_seed(0)
    ratio = torch.randn(6, generator=generator).double().requires_grad_()
    labels = doubles([1, 1, 1, 0, 0, 0])
    experts, failed = pools(labels, torch.zeros(6).bool(), Repirl())
    batch = IrlBatch(
        group=torch.tensor([0, 0, 1, 0, 1, 1]), lengths=torch.ones(6).long(),
        is_expert=experts, is_failed=failed, logprobs=torch.zeros(6).double(),
    )  # fmt: skip
    loss = irl_loss(ratio, batch, Repirl(prm_loss="ce")).loss
    implicit = 2 * ce_losses(ratio, labels, beta=1.0).mean()
    assert loss.item() == pytest.approx(implicit.item())
    ours, theirs = (torch.autograd.grad(value, ratio)[0] for value in (loss, implicit))
    close(ours, theirs, atol=1e-12)


def test_steps_of_the_released_learning_rate_move_no_half_precision_weight() -> None:
    inputs, expected = block("repirl.fp16_lr_underflow")
    weights = torch.tensor(inputs["w"], dtype=torch.float16)
    moved = (weights.float() - inputs["step"]).half()
    assert (moved != weights).tolist() == expected["changed"]
    spacing = np.spacing(weights.numpy()).astype(np.float64)
    assert (spacing / 2).tolist() == pytest.approx(expected["half_ulp"], rel=1e-6)
    single = weights.float()
    assert (single[1:] - inputs["step"] != single[1:]).all()


def test_problems_without_both_pools_are_left_out_and_counted() -> None:
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    experts = torch.tensor([True, False, True, True, False, False])
    sums = torch.tensor([0.3, 0.2, 5.0, 6.0, 7.0, 8.0], requires_grad=True)
    batch = make_batch(group, torch.full((6,), -1.0), experts)
    for kind in ("paper", "mle", "discriminator"):
        found = irl_loss(sums, batch, Repirl.model_validate({"prm_loss": kind}))
        assert (found.metrics["problems"].item(), found.metrics["skipped"].item()) == (1, 2)
        (gradient,) = torch.autograd.grad(found.loss, sums)
        assert gradient[:2].abs().min() > 0
        assert not gradient[2:].any()
    assert irl_loss(sums, batch, Repirl()).loss.item() == pytest.approx(-0.1)
    nothing = irl_loss(sums, make_batch(group, batch.logprobs, group == 1), Repirl())
    assert (nothing.loss.item(), nothing.metrics["problems"].item()) == (0, 0)
    assert nothing.metrics["ess"].item() == 0


def test_weights_of_long_responses_stay_finite() -> None:
    logprobs = torch.tensor([-4000.0, -3000.0, -10.0, -5.0])
    batch = make_batch(one_group(4), logprobs, torch.arange(4) == 3)
    for kind in ("paper", "mle", "discriminator"):
        sums = torch.tensor([900.0, -900.0, 0.5, 1.0], requires_grad=True)
        found = irl_loss(sums, batch, Repirl.model_validate({"prm_loss": kind}))
        assert torch.autograd.grad(found.loss, sums)[0].isfinite().all()
        assert found.weights.tolist() == pytest.approx([1, 0, 0, 0])
        assert found.metrics["ess"].item() == pytest.approx(1 / 3)


def test_a_log_ratio_for_reward() -> None:
    mask = flags([[1, 0]])
    rewards = log_ratio_rewards(torch.tensor([[-1.0, 9.0]]), torch.tensor([[-3.0, 1.0]]), mask)
    assert rewards.tolist() == [[2, 0]]


def test_a_group_of_one_is_refused() -> None:
    one = torch.rand(1, 3)
    with pytest.raises(InvalidInput, match="group_size"):
        repirl_advantages(one, torch.ones(1), torch.ones(1, 3).bool(), one_group(1), Repirl())


def test_discriminator_losses_are_cross_entropies_of_even_classes() -> None:
    # One expert and one failed response of equal weight: D = ½ for both, 2·ln 2.
    pair = torch.tensor([True, False])
    losses = discriminator_losses(torch.tensor([3.0, 3.0]), pair, ~pair, one_group(2))
    assert losses.item() == pytest.approx(2 * math.log(2), abs=1e-5)


def make_batch(
    group: Tensor, logprobs: Tensor, is_expert: Tensor, lengths: Tensor | None = None
) -> IrlBatch:
    """A batch in which whoever is no expert has failed; of one token each by default."""
    return IrlBatch(
        group=group,
        lengths=torch.ones_like(group) if lengths is None else lengths,
        is_expert=is_expert,
        is_failed=~is_expert,
        logprobs=logprobs,
    )


def cross_entropy(logits: Tensor, expert: Tensor, policy: Tensor) -> Tensor:
    """−E_expert log D − E_policy log(1 − D), over all outcomes."""
    return expert @ softplus(-logits) - policy @ logsigmoid(-logits)
