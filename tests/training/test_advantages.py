"""Group statistics, baselines, sums and scales."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prm.errors import InvalidInput
from tests.training.vectors import block, close, doubles, flags, one_group
from training.advantages import (
    active_leave_one_out,
    active_standardised,
    leave_one_out,
    masked_means,
    scale_by_batch_max,
    suffix_sums,
    whiten,
)
from training.groups import is_flat, is_within, standardise
from training.settings import AccuracyFilter
from training.settings.base import Scale


def test_the_prompt_filter_keeps_both_ends() -> None:
    inputs, expected = block("B1_prompt_filter")
    rows = inputs["accuracy_per_group"]
    group = torch.arange(len(rows)).repeat_interleave(4)
    bounds = AccuracyFilter(low=inputs["low"], high=inputs["high"])
    assert is_within(doubles(rows).flatten(), group, bounds).tolist() == expected["keep"]
    fifth = torch.tensor([1.0, 0, 0, 0, 0, 1, 1, 1, 1, 0])
    assert is_within(fifth, torch.arange(2).repeat_interleave(5), bounds).tolist() == [True, True]


def test_repirl_filters_the_same_way() -> None:
    inputs, expected = block("repirl.accuracy_filter")
    rows = inputs["outcomes_per_prompt"]
    group = torch.arange(len(rows)).repeat_interleave(4)
    bounds = AccuracyFilter(low=inputs["low"], high=inputs["high"])
    assert is_within(doubles(rows).flatten(), group, bounds).tolist() == expected["keep"]


def test_leave_one_out() -> None:
    inputs, expected = block("B2_rloo_outcome")
    rewards = doubles(inputs["reward"])
    close(leave_one_out(rewards, one_group(4)), expected["advantage"])
    close((rewards - rewards.mean()) * 4 / 3, expected["same_by_k_over_k_minus_1_form"])


def test_group_advantages_with_each_divisor() -> None:
    inputs, expected = block("prl.group_advantage")
    rewards, epsilon = doubles(inputs["R"]), inputs["eps"]
    group = one_group(5)
    scales: tuple[tuple[Scale, str], ...] = (
        ("unbiased", "A_unbiased_std(code,ddof=1)"),
        ("population", "A_population_std(v2 text,ddof=0)"),
        ("none", "A_mean_only(DrGRPO)"),
    )
    for scale, key in scales:
        close(standardise(rewards, group, scale=scale, epsilon=epsilon), expected[key])
    for value in (0.0, 0.7, 1.0):
        flat = torch.full((5,), value)
        for scale, _ in scales:
            ours = standardise(flat, group, scale=scale)
            assert ours.tolist() == expected["all_equal_group"]


def test_a_standardised_binary_reward_has_the_gain_of_the_arcsine() -> None:
    inputs, expected = block("prl.arcsin_utility")
    for place, share in enumerate(inputs["p"]):
        rewards = (torch.arange(20) < round(20 * share)).double()
        ours = standardise(rewards, one_group(20), scale="population")
        assert ours[0].item() == pytest.approx(expected["A_correct"][place], abs=1e-6)
        assert ours[-1].item() == pytest.approx(expected["A_wrong"][place], abs=1e-6)
        gain = ours[0].item() - ours[-1].item()
        assert gain == pytest.approx(expected["gain"][place], abs=1e-6)
        utility = 2 * math.asin(math.sqrt(share))
        assert utility == pytest.approx(expected["utility"][place], abs=1e-6)


def test_the_largest_return_of_a_batch_scales_it() -> None:
    inputs, expected = block("B4_prime_batch_norm")
    rewards, mask = doubles(inputs["token_log_ratio"]), flags(inputs["mask"])
    sums = suffix_sums(rewards, mask)
    close(sums, expected["reverse_cumsum"])
    assert sums.abs().max().item() == pytest.approx(expected["max_abs"])
    close(scale_by_batch_max(rewards, mask), expected["normalised"])


def test_rounding_noise_is_not_scaled_up() -> None:
    mask = torch.ones(3, 4, dtype=torch.bool)
    noise = 1e-7 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert not scale_by_batch_max(noise, mask).any()
    assert scale_by_batch_max(1e5 * noise, mask).any()


def test_what_the_mask_leaves_out_is_never_read() -> None:
    mask = flags([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]])
    clean = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).masked_fill(~mask, 0)
    dirty = clean.masked_fill(~mask, torch.nan)
    group = torch.tensor([0, 0, 1, 1])
    for function in (
        suffix_sums,
        whiten,
        scale_by_batch_max,
        masked_means,
        lambda x, m: suffix_sums(x, m, discount=0.9),
        lambda x, m: active_leave_one_out(x, m, group),
        lambda x, m: active_standardised(x, m, group),
    ):
        assert torch.equal(function(dirty, mask), function(clean, mask))
        assert function is masked_means or not function(dirty, mask)[~mask].any()


@given(st.integers(1, 40), st.floats(0.05, 1), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_discounted_sums_are_those_of_the_recursion(time: int, discount: float, seed: int) -> None:
    values = torch.randn(2, time, generator=torch.Generator().manual_seed(seed)).double()
    mask = torch.ones(2, time, dtype=torch.bool)
    mask[1, time // 2 :] = False
    expected = torch.zeros(2, time + 1).double()
    for place in reversed(range(time)):
        step = values[:, place] * mask[:, place]
        expected[:, place] = step + discount * expected[:, place + 1]
    ours = suffix_sums(values, mask, discount=discount)
    torch.testing.assert_close(ours, expected[:, :-1] * mask)


def test_whitening_gives_mean_0_and_unbiased_variance_1() -> None:
    mask = flags([[1, 1, 0], [1, 1, 1]])
    white = whiten(torch.tensor([[3.0, 5, 99], [1, 8, 2]]), mask)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert white[mask].var().item() == pytest.approx(1, abs=1e-6)


def test_whitening_one_token_or_equal_tokens_gives_0() -> None:
    one = torch.tensor([[True, False]])
    assert not whiten(torch.tensor([[5.0, 1.0]]), one).any()
    assert not whiten(torch.full((2, 2), 0.25), torch.ones(2, 2, dtype=torch.bool)).any()
    assert not whiten(torch.ones(1, 2), ~torch.ones(1, 2, dtype=torch.bool)).any()


def test_a_group_of_one_is_refused_with_the_remedy() -> None:
    group, mask = torch.tensor([0, 0, 4]), torch.ones(3, 2, dtype=torch.bool)
    rewards, tokens = torch.rand(3), torch.rand(3, 2)
    calls: tuple[Callable[[], Tensor], ...] = (
        lambda: leave_one_out(rewards, group),
        lambda: standardise(rewards, group),
        lambda: active_leave_one_out(tokens, mask, group),
        lambda: active_standardised(tokens, mask, group),
    )
    for call in calls:
        with pytest.raises(InvalidInput, match=r"group 4.*group_size to 2") as raised:
            call()
        assert raised.value.param == "group_size"


def test_flat_groups_are_known() -> None:
    rewards, group = torch.tensor([1.0, 1, 0.3, 0.4, 0, 0]), torch.tensor([0, 0, 2, 2, 1, 1])
    assert is_flat(rewards, group).tolist() == [True, True, False]
    assert standardise(rewards, group).tolist()[:2] == [0, 0]


@pytest.mark.parametrize("function", [leave_one_out, standardise])
def test_the_order_and_the_numbers_of_groups_do_not_matter(function: object) -> None:
    assert callable(function)
    rewards = torch.tensor([1.0, 0, 0, 1, 0.5, 0.25])
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    order = torch.tensor([3, 0, 5, 2, 4, 1])
    ours: Tensor = function(rewards[order], 7 * group[order] + 2)
    close(ours, function(rewards, group)[order], atol=1e-7)


def test_the_longest_rollouts_tail_has_no_baseline() -> None:
    # By hand: at t = 0 both go on, 3 − 1 = 2 and −2; at t = 1 only the first, 2 − 0.
    returns, mask = torch.tensor([[3.0, 2.0], [1.0, 0.0]]), flags([[1, 1], [1, 0]])
    ours = active_leave_one_out(returns, mask, one_group(2))
    assert ours.tolist() == [[2, 2], [-2, 0]]
    assert active_standardised(returns, mask, one_group(2))[0, 1].item() == 0
