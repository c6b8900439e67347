"""The losses: published numbers, values worked out by hand, and finite differences."""

import math

import pytest
import torch

from training.algorithms.implicit_prm import implicit_prm_loss, sequence_log_ratio
from training.algorithms.sft import sft_loss

# Log-probabilities of six tokens under a trained and a reference model.
TRAINED = [-0.2231, -1.204, -0.3567, -2.3026, -0.6931, -0.1054]
REFERENCE = [-0.5108, -1.0217, -0.4155, -1.6094, -1.273, -0.2877]


def test_sft_counts_response_tokens_alone() -> None:
    # Three response tokens: -(−1 − 2 − 6)/3 = 3, whatever the prompt and the padding hold.
    logprobs = torch.tensor([[9.0, -1.0, -2.0], [9.0, 9.0, -6.0]])
    is_target = torch.tensor([[False, True, True], [False, False, True]])
    assert sft_loss(logprobs, is_target).item() == pytest.approx(3.0)


def test_the_log_ratio_is_summed_over_response_tokens() -> None:
    logprobs, is_target = torch.tensor([TRAINED]), torch.ones(1, 6, dtype=torch.bool)
    ratio = sequence_log_ratio(logprobs, is_target, torch.tensor([sum(REFERENCE)]))
    assert 0.05 * ratio.item() == pytest.approx(0.01166, abs=1e-6)
    is_target[0, :4] = False
    ratio = sequence_log_ratio(logprobs, is_target, torch.tensor([sum(REFERENCE[4:])]))
    assert 0.05 * ratio.item() == pytest.approx(0.03811, abs=1e-6)


def test_cross_entropy_on_four_responses() -> None:
    ratio = torch.tensor([12.0, -8.0, 0.0, 30.0], requires_grad=True)
    labels = torch.tensor([1.0, 0.0, 1.0, 0.4])
    loss = implicit_prm_loss(ratio, labels, beta=0.05)
    assert loss.item() == pytest.approx(0.68626592, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, ratio)
    assert gradient.tolist() == pytest.approx(
        [-0.0044293, 0.0050164, -0.00625, 0.00521968], abs=1e-7
    )


def test_a_value_and_gradient_by_hand() -> None:
    # β = 0.5 and s = 2 ln 3 make βs = ln 3, so σ = 3/4. Right: -ln(3/4); wrong: -ln(1/4).
    # Gradient by s: β(σ − l) = 0.5·(0.75 − 1) = −0.125 and 0.5·0.75 = 0.375.
    for label, value, slope in ((1.0, math.log(4 / 3), -0.125), (0.0, math.log(4), 0.375)):
        ratio = torch.tensor([2 * math.log(3)], requires_grad=True)
        loss = implicit_prm_loss(ratio, torch.tensor([label]), beta=0.5)
        assert loss.item() == pytest.approx(value, abs=1e-6)
        assert torch.autograd.grad(loss, ratio)[0].item() == pytest.approx(slope, abs=1e-6)


def test_training_starts_at_ln_2() -> None:
    loss = implicit_prm_loss(torch.zeros(5), torch.tensor([0.0, 1.0, 1.0, 0.0, 0.5]), beta=0.3)
    assert loss.item() == pytest.approx(math.log(2))


def test_a_certain_mistake_costs_a_finite_loss() -> None:
    loss = implicit_prm_loss(torch.tensor([1e4, -1e4]), torch.tensor([0.0, 1.0]), beta=0.5)
    assert loss.item() == pytest.approx(5e3)


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    ratio = torch.randn(6, dtype=torch.double, requires_grad=True)
    labels = torch.rand(6, dtype=torch.double)
    assert torch.autograd.gradcheck(
        lambda r: implicit_prm_loss(r, labels, beta=0.4), [ratio], raise_exception=True
    )
