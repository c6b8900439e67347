"""The clipped surrogate, the KL estimators, token weights and importance weights."""

import math

import pytest
import torch

from tests.training.vectors import block, close, doubles, flags
from training.divergence import kl_to_go, token_kl
from training.losses import averages, clipped_surrogate, policy_loss
from training.settings import Grpo
from training.settings.base import Normaliser
from training.weighting import denominator, token_weights, truncated_importance

GROUP = torch.tensor([0, 0, 1])
MASK = flags([[1, 1, 1], [1, 0, 0], [1, 1, 0]])


def test_ppos_clip() -> None:
    inputs, expected = block("B6_ppo_clip")
    new, old, mask = doubles(inputs["logp_new"]), doubles(inputs["logp_old"]), flags(inputs["mask"])
    settings = Grpo(clip_low=inputs["eps"], clip_high=inputs["eps"])
    advantages = doubles(inputs["advantage"])
    surrogate = clipped_surrogate(settings, new, old, advantages, mask)
    close(surrogate.ratios, expected["ratio"])
    close(surrogate.losses, expected["token_loss"])
    weights = token_weights(mask, torch.zeros(2).long(), "token_batch")
    part = policy_loss(settings, new, old, advantages, weights, mask)
    assert part.loss.item() == pytest.approx(expected["loss_token_mean"], abs=1e-7)
    means = averages([part])
    assert means["clipped"] == pytest.approx(expected["clipfrac"])
    assert means["approx_kl"] == pytest.approx(expected["approx_kl_k1"])


def test_prls_loss_with_a_dual_clip_by_both_means() -> None:
    inputs, expected = block("prl.ppo_clip_loss")
    mask, rho = flags(inputs["mask"]), doubles(inputs["rho"])
    old = doubles(inputs["logp_old"])
    settings = Grpo(
        clip_low=inputs["eps_low"], clip_high=inputs["eps_high"], dual_clip=inputs["dual_clip_c"]
    )
    surrogate = clipped_surrogate(settings, doubles(inputs["logp_new"]), old, rho, mask)
    close(surrogate.ratios * mask, expected["ratio"])
    close(surrogate.losses, expected["loss_per_token"])
    cases: tuple[tuple[Normaliser, str, str], ...] = (
        ("token_batch", "loss_token_mean(verl default)", "dloss_dlogp_new_token_mean"),
        ("sequence", "loss_seq_mean_token_mean(paper Alg.1)", "dloss_dlogp_new_seq_mean"),
    )
    for normaliser, value, gradient in cases:
        new = doubles(inputs["logp_new"]).requires_grad_()
        weights = token_weights(mask, torch.zeros(2).long(), normaliser)
        loss = policy_loss(settings, new, old, rho, weights, mask).loss
        assert loss.item() == pytest.approx(expected[value], abs=1e-7)
        close(torch.autograd.grad(loss, new)[0], expected[gradient], atol=1e-5)


def test_on_policy_the_gradient_is_the_advantage() -> None:
    inputs, expected = block("prl.on_policy_gradient")
    mask, rho = flags(inputs["mask"]), doubles(inputs["rho"])
    new = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    weights = token_weights(mask, torch.zeros(2).long(), "token_batch")
    part = policy_loss(Grpo(), new, new.detach(), rho, weights, mask)
    close(torch.autograd.grad(part.loss, new)[0], expected["dloss_dlogp_token_mean"])
    assert averages([part])["clipped"] == 0


def test_kl_estimators_and_what_they_weigh() -> None:
    inputs, expected = block("prl.kl_estimators_and_fdiv_weights")
    delta = doubles([inputs["delta"]])
    mask, zero = torch.ones(1, 4).bool(), torch.zeros(1, 4).double()
    for estimator in ("k1", "k2", "k3"):
        close(token_kl(delta, zero, mask, estimator)[0], expected[estimator])
    close(kl_to_go(delta, zero, mask, "k1")[0], expected["reg_reverse_k1"])
    close(kl_to_go(delta, zero, mask, "k3")[0], expected["reg_reverse_k3"])
    leaf = delta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(token_kl(leaf, zero, mask, "k3").sum(), leaf)
    close(gradient[0], expected["grad_coef_k3_loss_side"])


def test_a_negative_advantage_costs_at_most_the_dual_clip() -> None:
    new, old, mask = torch.tensor([[3.0]]), torch.zeros(1, 1), torch.ones(1, 1).bool()
    bad = torch.tensor([[-2.0]])
    plain = clipped_surrogate(Grpo(), new, old, bad, mask)
    assert plain.losses.item() == pytest.approx(2 * math.e**3, rel=1e-6)
    dual = clipped_surrogate(Grpo(dual_clip=3.0), new, old, bad, mask)
    assert dual.losses.item() == 6
    assert dual.is_dual_clipped.item()
    assert not dual.is_clipped.item()


def test_the_bounds_of_the_clip_may_differ() -> None:
    old, mask = torch.zeros(1, 2), torch.ones(1, 2).bool()
    new, good = torch.log(torch.tensor([[1.4, 1.25]])), torch.ones(1, 2)
    wide = clipped_surrogate(Grpo(clip_low=0.2, clip_high=0.3), new, old, good, mask)
    close(wide.losses, torch.tensor([[-1.3, -1.25]]))
    assert wide.is_clipped.tolist() == [[True, False]]


def test_far_log_probs_give_finite_losses_and_gradients() -> None:
    new = torch.tensor([[-300.0, 0.0, -1.0]], requires_grad=True)
    old, mask = torch.tensor([[0.0, -300.0, -torch.inf]]), flags([[1, 1, 0]])
    settings = Grpo(kl_coefficient=0.1, dual_clip=3.0)
    part = policy_loss(
        settings, new, old, -torch.ones(1, 3), torch.ones(1, 3), mask, reference_logprobs=old
    )
    assert part.loss.isfinite()
    assert torch.autograd.grad(part.loss, new)[0].isfinite().all()
    assert all(math.isfinite(value) for value in averages([part]).values())


def test_each_normaliser_by_hand() -> None:
    # Lengths 3, 1, 2 in groups {0, 1}, {2}.
    wanted: dict[Normaliser, list[float]] = {
        "token_batch": [1 / 6, 1 / 6, 1 / 6],
        "token_group": [1 / 8, 1 / 8, 1 / 4],
        "sequence": [1 / 9, 1 / 3, 1 / 6],
    }
    for normaliser, per_token in wanted.items():
        weights = token_weights(MASK, GROUP, normaliser)
        close(weights, torch.tensor(per_token)[:, None] * MASK)
        assert weights.sum().item() == pytest.approx(1)


def test_a_response_without_tokens_counts_nothing() -> None:
    mask = torch.cat([MASK, torch.zeros(2, 3).bool()])
    group = torch.tensor([0, 0, 1, 1, 2])
    for normaliser in ("token_batch", "token_group", "sequence"):
        weights = token_weights(mask, group, normaliser)
        close(weights[:3], token_weights(MASK, GROUP, normaliser))
        assert not weights[3:].any()


def test_the_weights_of_two_ranks_are_those_of_one() -> None:
    for normaliser in ("token_batch", "token_group", "sequence"):
        parts = [(MASK[:2], GROUP[:2]), (MASK[2:], GROUP[2:])]
        total = torch.stack([denominator(*part, normaliser) for part in parts]).sum()
        split = [token_weights(*part, normaliser, total=total) for part in parts]
        close(torch.cat(split), token_weights(MASK, GROUP, normaliser))


def test_importance_is_truncated_detached_and_1_where_the_engines_agree() -> None:
    trainer = torch.tensor([[0.0, 2.0, -1.0, 5.0]], requires_grad=True)
    sampler, mask = torch.tensor([[0.0, 0.0, 0.0, -torch.inf]]), flags([[1, 1, 1, 0]])
    weights = truncated_importance(trainer, sampler, mask, cap=2.0)
    close(weights, torch.tensor([[1.0, 2.0, math.exp(-1), 0.0]]))
    assert not weights.requires_grad


def test_importance_weighs_the_surrogate_and_not_the_kl() -> None:
    new = torch.zeros(1, 2, requires_grad=True)
    reference, mask, ones = -torch.ones(1, 2), torch.ones(1, 2).bool(), torch.ones(1, 2)
    settings = Grpo(kl_coefficient=0.5, kl_estimator="k2")
    part = policy_loss(
        settings, new, new.detach(), ones, ones, mask,
        importance=torch.tensor([[2.0, 0.5]]), reference_logprobs=reference,
    )  # fmt: skip
    # −2 − ½ from the surrogate, ½ · ½ · 2 from the KL.
    assert part.loss.item() == pytest.approx(-2.0)
    (gradient,) = torch.autograd.grad(part.loss, new)
    close(gradient, torch.tensor([[-2 + 0.5, -0.5 + 0.5]]))


def test_an_entropy_bonus_lowers_the_loss() -> None:
    zeros, mask = torch.zeros(1, 2), torch.ones(1, 2).bool()
    entropies = torch.tensor([[1.0, 3.0]], requires_grad=True)
    part = policy_loss(
        Grpo(entropy_coefficient=0.1), zeros, zeros, zeros, torch.full((1, 2), 0.5), mask,
        entropies=entropies,
    )  # fmt: skip
    assert part.loss.item() == pytest.approx(-0.2)
    assert averages([part])["entropy"] == 2
