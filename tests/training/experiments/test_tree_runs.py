"""Runs on the synthetic tree: side by side, and none knows of another."""

import pytest
import torch
from torch import Tensor

from training.experiments.tree_runs import Arm, gradients_of, network, run_tree, table
from training.tasks.tree import Tree

TREE = Tree(shared=1, bad=-1.0)
# The moves, and the nodes that they were made at, of four responses: LLRL, LLLR, LLRR, RRRL.
MOVES = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 1, 0]])
NODES = torch.tensor([[1, 2, 4, 9], [1, 2, 4, 8], [1, 2, 4, 9], [1, 3, 7, 15]])
REWARDS = torch.tensor([1.0, -1.0, -1.0, 0.7])


def of_two_runs(arm: Arm, of_second: Tensor) -> Tensor:
    """The gradients of two runs that wrote the same, with other rewards in the second."""
    policies = table(2, 4)
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    rewards = torch.cat([REWARDS, of_second])
    (found,) = gradients_of(arm, policies, MOVES.repeat(2, 1), NODES.repeat(2, 1), group, rewards)
    return found


def test_a_step_that_many_took_counts_once() -> None:
    plain, once = (of_two_runs(arm, REWARDS)[0] for arm in ("grpo", "lambda_grpo"))
    # At a fresh table each move has the chance 1/2. Three went left first: A = .99991 − 2 · .86039
    # in all, or a third of that; one went right: A = .72087. Sixteen tokens, minus: a loss.
    assert plain[1, 0].item() == pytest.approx(-(-0.72087 - 0.72087) / 2 / 16, abs=1e-4)
    assert once[1, 0].item() == pytest.approx(-(-0.72087 / 3 - 0.72087) / 2 / 16, abs=1e-4)
    torch.testing.assert_close(once[15], plain[15])


def test_a_matched_gradient_is_grpos_and_as_long_as_lambda_grpos() -> None:
    plain, once, matched = (
        of_two_runs(arm, REWARDS)[0] for arm in ("grpo", "lambda_grpo", "grpo_matched")
    )
    assert matched.norm().item() == pytest.approx(once.norm().item(), rel=1e-5)
    torch.testing.assert_close(matched / matched.norm(), plain / plain.norm())


@pytest.mark.parametrize("arm", ["grpo", "lambda_grpo", "grpo_matched"])
def test_a_run_knows_nothing_of_the_others(arm: Arm) -> None:
    beside = of_two_runs(arm, REWARDS.flip(0))[0]
    torch.testing.assert_close(beside, of_two_runs(arm, REWARDS)[0])


def test_a_network_is_another_one_for_every_run_and_seed() -> None:
    logits = network(2, 4, seed=0).logits()
    assert logits.shape == (2, 16, 2)
    assert not torch.equal(logits[0], logits[1])
    assert not torch.equal(logits, network(2, 4, seed=1).logits())


def test_a_policy_on_the_target_is_seen_to_be_there() -> None:
    policies = table(2, 4)
    with torch.no_grad():
        for node, move in ((1, 0), (2, 0), (4, 1), (9, 0)):
            policies.parameters[0][0, node, move] = 20.0
    still = torch.optim.SGD(policies.parameters, lr=1e-9)
    on_it, anywhere = run_tree(TREE, "grpo", policies, still, steps=50, seed=0)
    assert on_it == 1.0
    assert 0.02 < anywhere < 0.11
