"""Step labels: made from completions, and learnt from."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.training.vectors import close, flags
from training.algorithms.step_bce import monte_carlo_labels, prefix_logits, step_bce_losses
from training.settings import StepBce


def test_the_loss_is_cross_entropy_on_labelled_steps_alone() -> None:
    logits = torch.tensor([[2.0, -1.0, torch.nan], [0.5, 0.0, 3.0]], requires_grad=True)
    labels = torch.tensor([[1.0, 0.25, torch.nan], [0.0, 1.0, 0.7]])
    known = flags([[1, 1, 0], [1, 0, 1]])
    losses = step_bce_losses(logits, labels, known, StepBce())
    wanted = binary_cross_entropy_with_logits(logits[known], labels[known], reduction="none")
    close(losses[known], wanted)
    assert not losses[~known].any()
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert gradient.isfinite().all()
    assert not gradient[~known].any()


def test_right_steps_may_weigh_less() -> None:
    losses = step_bce_losses(
        torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.ones(1, 2).bool(),
        StepBce(right_weight=0.25),
    )  # fmt: skip
    assert losses.tolist()[0] == pytest.approx([math.log(2) / 4, math.log(2)])


def test_labels_from_completions() -> None:
    is_correct = flags([[[1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]])
    soft = monte_carlo_labels(is_correct, StepBce(labels="soft", continuations=4))
    assert soft.tolist() == [[0.75, 0.25, 0.0]]
    hard = monte_carlo_labels(is_correct, StepBce(labels="hard", continuations=4))
    assert hard.tolist() == [[1, 1, 0]]


def test_the_implicit_prms_q_is_a_steps_logit() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 1.0, 1.0, 0.0]], requires_grad=True)
    ends = flags([[0, 1, 0, 1], [0, 0, 1, 0]])
    logits, is_step = prefix_logits(rewards, ends, 3)
    assert logits.tolist() == [[3, 15, 0], [3, 0, 0]]
    assert is_step.tolist() == flags([[1, 1, 0], [1, 0, 0]]).tolist()
    (gradient,) = torch.autograd.grad(logits[0, 0], rewards)
    assert gradient.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
