"""PRIME's advantages, link by link and as the two official pipelines, and its PRM's accuracy."""

import pytest
import torch

from prm.errors import InvalidInput
from tests.training.vectors import block, close, doubles, flags, one_group
from training.advantages import leave_one_out, masked_means, suffix_sums, whiten
from training.algorithms.prime import (
    centred_rewards,
    pair_accuracy,
    prime_advantages,
    process_returns,
    value_advantages,
)
from training.settings import Prime
from training.settings.prime import Baseline

FORMS: tuple[tuple[str, Baseline], ...] = (
    ("length_normalised", "length_normalised"),
    ("official_code", "official_code"),
)


@pytest.mark.parametrize(("key", "baseline"), FORMS)
@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_advantages_with_both_baselines(key: str, baseline: Baseline, discount: float) -> None:
    inputs, expected = block("B3_prime_rloo_token_advantage")
    rewards, mask = doubles(inputs["token_process_reward"]), flags(inputs["mask"])
    outcome, group = doubles(inputs["outcome_reward"]), one_group(4)
    settings = Prime(
        baseline=baseline, process_discount=discount, process_normaliser="none", beta=1.0
    )
    close(rewards.sum(1), expected["sequence_sum"])
    close(masked_means(rewards, mask), expected["sequence_token_mean"])
    close(leave_one_out(outcome, group), expected["outcome_loo"])
    wanted = expected[key]
    close(centred_rewards(rewards, mask, group, settings), wanted["centered_token_reward"])
    wanted = wanted[f"gamma_{discount}"]
    close(process_returns(rewards, mask, group, settings), wanted["process_return"])
    plain = settings.model_copy(update={"whiten": False})
    ours = prime_advantages(rewards, outcome, mask, group, plain)
    close(ours, wanted["advantage_eq5_process_plus_outcome"])
    ours = prime_advantages(rewards, outcome, mask, group, settings)
    close(ours, wanted["advantage_whitened"])


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_equation_5_as_printed_is_another_thing(discount: float) -> None:
    inputs, expected = block("B3_prime_rloo_token_advantage")
    rewards, mask = doubles(inputs["token_process_reward"]), flags(inputs["mask"])
    outcome, group = doubles(inputs["outcome_reward"]), one_group(4)
    sums = rewards.sum(1)
    literal = (rewards - (sums - leave_one_out(sums, group))[:, None]) * mask
    wanted = expected["paper_eq5_literal"]
    close(literal, wanted["centered_token_reward"])
    returns = suffix_sums(literal, mask, discount=discount)
    close(returns, wanted[f"gamma_{discount}"]["process_return"])
    combined = (returns + leave_one_out(outcome, group)[:, None]) * mask
    close(combined, wanted[f"gamma_{discount}"]["advantage_eq5_process_plus_outcome"])
    close(whiten(combined, mask), wanted[f"gamma_{discount}"]["advantage_whitened"])
    with pytest.raises(ValueError, match=r'baseline "paper".*use "length_normalised"'):
        Prime.model_validate({"baseline": "paper"})


def test_the_baselines_agree_at_the_first_token_alone() -> None:
    inputs, _ = block("B3_prime_rloo_token_advantage")
    rewards, mask = doubles(inputs["token_process_reward"]), flags(inputs["mask"])
    ours, theirs = (
        process_returns(rewards, mask, one_group(4), Prime(baseline=baseline))
        for _, baseline in FORMS
    )
    close(ours[:, 0], theirs[:, 0])
    assert (ours - theirs)[:, 1:].abs().max() > 1e-3


def test_the_pipeline_of_the_authors() -> None:
    inputs, expected = block("B5_prime_full_pipeline_two_groups")
    wanted = expected["prime_repo"]
    ratio, mask = doubles(inputs["token_log_ratio_prm_minus_ref"]), flags(inputs["mask"])
    outcome, group = doubles(inputs["accuracy"]), torch.arange(2).repeat_interleave(inputs["K"])
    assert suffix_sums(ratio, mask).abs().max().item() == pytest.approx(wanted["normaliser"])
    settings = Prime(baseline="official_code", beta=inputs["beta"])
    plain = settings.model_copy(update={"whiten": False})
    close(prime_advantages(ratio, outcome, mask, group, plain), doubles(wanted["returns"]) * mask)
    close(
        prime_advantages(ratio, outcome, mask, group, settings),
        doubles(wanted["advantages"]) * mask,
    )
    assert torch.equal(
        prime_advantages(ratio, outcome, mask, group, settings),
        prime_advantages(ratio, outcome, mask, group, settings.model_copy(update={"beta": 5.0})),
    ), "β has no say in the policy's reward"


def test_the_pipeline_of_verl() -> None:
    # It leaves out the last token's process reward, scales β·log-ratio, and multiplies both by 5.
    inputs, expected = block("B5_prime_full_pipeline_two_groups")
    wanted = expected["verl_recipe"]
    mask, outcome = flags(inputs["mask"]), doubles(inputs["accuracy"])
    is_last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    scores = inputs["beta"] * doubles(inputs["token_log_ratio_prm_minus_ref"])
    scores = scores.masked_fill(is_last, 0.0)
    largest = suffix_sums(scores, mask).abs().max().item()
    assert largest == pytest.approx(wanted["normaliser"])
    settings = Prime(
        baseline="official_code", process_coefficient=5.0, outcome_coefficient=5.0, whiten=False
    )
    group = torch.arange(2).repeat_interleave(inputs["K"])
    returns = prime_advantages(scores, outcome, mask, group, settings)
    close(returns, doubles(wanted["returns"]) * mask, atol=1e-5)
    settings = settings.model_copy(update={"whiten": True})
    ours = prime_advantages(scores, outcome, mask, group, settings)
    close(ours, doubles(wanted["advantages"]) * mask)


def test_the_estimators_with_a_group_std_and_without_a_baseline() -> None:
    inputs, expected = block("B7_other_estimators")
    rewards, mask = doubles(inputs["token_process_reward"]), flags(inputs["mask"])
    outcome, group = doubles(inputs["outcome_reward"]), one_group(4)
    common = {"process_normaliser": "none", "beta": 1.0, "whiten": False}
    for settings, key in (
        (Prime.model_validate(common | {"estimator": "grpo"}), "grpo_with_prime_eq7_ddof1"),
        (Prime.model_validate(common | {"estimator": "reinforce"}), "reinforce_with_prime_eq8"),
        (
            Prime(process_as="value", beta=1.0, whiten=False),
            "prm_as_value_baseline_variant3",
        ),
    ):
        close(prime_advantages(rewards, outcome, mask, group, settings), expected[key])
    close(value_advantages(rewards, outcome, mask), expected["prm_as_value_baseline_variant3"])


def test_verls_advantages_with_two_coefficients() -> None:
    inputs, expected = block("prime.rloo_advantage")
    scores, mask = doubles(inputs["rm_scores"]), flags(inputs["mask"])
    outcome, group = doubles(inputs["acc"]), one_group(4)
    settings = Prime(
        baseline="official_code",
        process_normaliser="none",
        beta=1.0,
        process_coefficient=inputs["coef_process"],
        outcome_coefficient=inputs["coef_outcome"],
        whiten=False,
    )
    close(centred_rewards(scores, mask, group, settings), expected["process_rloo"])
    at_end = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    close(leave_one_out(outcome, group)[:, None] * at_end, expected["outcome_rloo"])
    close(prime_advantages(scores, outcome, mask, group, settings), expected["returns"])
    settings = settings.model_copy(update={"whiten": True})
    close(prime_advantages(scores, outcome, mask, group, settings), expected["A_whitened"])


def test_pairs_in_the_right_order() -> None:
    inputs, expected = block("B8_prm_pair_accuracy")
    scores, rewards = doubles(inputs["sequence_score"]), doubles(inputs["accuracy"])
    ours = pair_accuracy(scores, rewards, one_group(4))
    assert ours.item() == pytest.approx(expected["pair_accuracy"])
    assert pair_accuracy(scores, torch.ones(4).double(), one_group(4)).item() == 0.5
    # By hand: pairs (1, ½) right, (1, 0) wrong, (½, 0) wrong, weights ½, 1, ½; another problem's
    # rollout is in no pair with them.
    graded = pair_accuracy(
        torch.tensor([2.0, 1.0, 3.0, 9.0]),
        torch.tensor([1.0, 0.5, 0.0, 0.0]),
        torch.tensor([0, 0, 0, 1]),
    )
    assert graded.item() == pytest.approx(0.25)


def test_before_its_first_update_the_prm_has_no_say() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, mask = 1e-6 * torch.randn(4, 5, generator=generator), torch.ones(4, 5).bool()
    outcome, settings = torch.tensor([1.0, 0, 0, 1]), Prime(whiten=False)
    ours = prime_advantages(noise, outcome, mask, one_group(4), settings)
    close(ours, leave_one_out(outcome, one_group(4))[:, None].expand(4, 5))


def test_a_group_of_one_needs_an_estimator_without_baseline() -> None:
    ratio, mask, outcome = torch.rand(1, 3), torch.ones(1, 3).bool(), torch.ones(1)
    for estimator in ("rloo", "grpo"):
        with pytest.raises(InvalidInput, match="group_size"):
            prime_advantages(
                ratio, outcome, mask, one_group(1), Prime.model_validate({"estimator": estimator})
            )
    ours = prime_advantages(
        ratio, outcome, mask, one_group(1), Prime(estimator="reinforce", whiten=False)
    )
    assert ours.isfinite().all()


def test_a_group_whose_responses_look_alike_is_not_divided_by_nothing() -> None:
    ratio, mask = torch.full((4, 3), 0.25), torch.ones(4, 3).bool()
    settings = Prime(estimator="grpo", process_normaliser="none", whiten=False)
    ours = prime_advantages(ratio, torch.zeros(4), mask, one_group(4), settings)
    assert ours.abs().max() < 1e-6
