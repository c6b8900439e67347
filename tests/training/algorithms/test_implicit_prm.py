"""Implicit PRMs: the paper's identities, and each loss on worked numbers."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from prm.aggregation import AGGREGATIONS
from prm.families.implicit import step_values
from tests.training.vectors import block, close, doubles
from training.algorithms.implicit_prm import (
    ce_losses,
    dpo_losses,
    implicit_prm_loss,
    kto_losses,
    kto_reference_point,
    nca_losses,
    pairs_of,
    sequence_log_ratio,
    token_rewards,
)
from training.settings import ImplicitPrm

Table = dict[str, list[float]]


def test_token_step_and_prefix_rewards() -> None:
    inputs, expected = block("A1_implicit_reward")
    trained, reference = doubles([inputs["logp_policy"]]), doubles([inputs["logp_ref"]])
    mask, beta = torch.ones_like(trained, dtype=torch.bool), inputs["beta"]
    rewards = token_rewards(trained, reference, mask, beta=beta)
    close(rewards[0], expected["token_reward"])
    close(rewards[0].cumsum(0), expected["prefix_Q"])
    ratio = sequence_log_ratio(trained, mask, reference.sum(1))
    close(beta * ratio, [expected["sequence_reward"]])
    ends = [index + 1 for index in inputs["step_last_token_index_inclusive"]]
    singles = step_values(rewards[0].tolist(), ends)
    sums = rewards[0].cumsum(0)[torch.tensor(ends) - 1].tolist()
    close(doubles(singles), expected["step_reward"])
    close(doubles(sums), expected["step_Q"])
    for name in ("min", "sum", "mean"):
        assert AGGREGATIONS[name](singles) == pytest.approx(expected["agg_single"][name], abs=1e-7)
        wanted = expected["agg_accumulative"][name]
        assert AGGREGATIONS[name](sums) == pytest.approx(wanted, abs=1e-7)
    without = token_rewards(trained, None, mask, beta=beta)
    close(without[0], expected["without_ref"]["token_reward"])
    steps = step_values(without[0].tolist(), ends)
    close(doubles(steps), expected["without_ref"]["step_reward"])
    assert min(steps) == pytest.approx(expected["without_ref"]["agg_single_min"])


def test_the_running_sum_is_the_soft_value_of_the_prefix() -> None:
    inputs, expected = block("A2_q_value_identity")
    beta, trained, reference = (
        inputs["beta"],
        inputs["policy_next_token_probs"],
        inputs["ref_next_token_probs"],
    )
    for sequence, reward in expected["sequence_reward"].items():
        assert q_of(sequence, trained, reference, beta) == pytest.approx(reward, abs=1e-7)
    for name, values in expected["per_prefix"].items():
        prefix = "" if name == "<empty>" else name
        q = q_of(prefix, trained, reference, beta)
        rewards, chances = completions(prefix, trained, reference, beta)
        assert q == pytest.approx(values["q_from_logratio_sum"], abs=1e-7)
        soft = soft_value(rewards, chances, beta)
        assert soft == pytest.approx(values["q_from_log_mean_exp"], abs=1e-7)
        assert (rewards @ chances).item() == pytest.approx(values["soft_mean_reward"], abs=1e-7)
        assert rewards.max().item() == pytest.approx(values["hard_max_reward"], abs=1e-7)
    sweep = expected["beta_sweep_prefix_0_rewards_fixed"]
    rewards, chances = completions("0", trained, reference, beta)
    for temperature, value in sweep["beta_to_log_mean_exp"].items():
        ours = soft_value(rewards, chances, float(temperature))
        assert ours == pytest.approx(value, abs=1e-7)
        assert sweep["soft_mean"] <= ours <= sweep["hard_max"]


@given(st.integers(0, 10_000), st.floats(0.05, 5))
@hypothesis_settings(max_examples=40, deadline=None)
def test_the_identity_holds_for_any_two_models(seed: int, beta: float) -> None:
    # Proposition 3.1 and, with the bounds, 3.2: neither asks that anything was trained.
    trained, reference = random_model(seed), random_model(seed + 1)
    for length in range(4):
        for prefix in map("".join, product("01", repeat=length)):
            q = q_of(prefix, trained, reference, beta)
            rewards, chances = completions(prefix, trained, reference, beta)
            assert q == pytest.approx(soft_value(rewards, chances, beta), abs=1e-9)
            assert (rewards @ chances).item() - 1e-9 <= q <= rewards.max().item() + 1e-9


def test_cross_entropy_and_its_gradient() -> None:
    inputs, expected = block("A3_ce_loss")
    ratio = doubles(inputs["sum_logratio"]).requires_grad_()
    labels, beta = doubles(inputs["label"]), inputs["beta"]
    close(torch.sigmoid(beta * ratio.detach()), expected["sigma"])
    losses = ce_losses(ratio, labels, beta=beta)
    close(losses.detach(), expected["per_sample_loss"])
    loss = implicit_prm_loss(ratio, labels, beta=beta)
    assert loss.item() == pytest.approx(expected["mean_loss"], abs=1e-7)
    close(torch.autograd.grad(loss, ratio)[0], expected["grad_wrt_sum_logratio"])
    start = implicit_prm_loss(torch.zeros(4).double(), labels, beta=beta)
    assert start.item() == pytest.approx(expected["loss_at_init_policy_equals_ref"])


def test_cross_entropy_from_log_probs() -> None:
    inputs, expected = block("implicit_prm.ce")
    trained, reference = doubles(inputs["logp_phi"]), doubles(inputs["logp_ref"])
    mask = torch.ones_like(trained, dtype=torch.bool)
    rewards = token_rewards(trained, reference, mask, beta=inputs["beta"])
    close(rewards, expected["token_reward"])
    close(torch.sigmoid(rewards.sum(1)), expected["prob"])
    ratio = sequence_log_ratio(trained, mask, reference.sum(1))
    loss = implicit_prm_loss(ratio, doubles(inputs["label"]), beta=inputs["beta"])
    assert loss.item() == pytest.approx(expected["CE"], abs=1e-7)


def test_dpo_kto_and_nca() -> None:
    inputs, expected = block("A4_dpo_kto_nca")
    beta = inputs["beta"]
    right = doubles(inputs["logp_policy_chosen"]) - doubles(inputs["logp_ref_chosen"])
    wrong = doubles(inputs["logp_policy_rejected"]) - doubles(inputs["logp_ref_rejected"])
    close(dpo_losses(right, wrong, beta=beta), expected["dpo_per_pair"])
    close(dpo_losses(right, wrong, beta=beta).mean(), expected["dpo_mean"])
    close(nca_losses(right, wrong, beta=beta), expected["nca_per_pair"])
    close(nca_losses(right, wrong, beta=beta).mean(), expected["nca_mean"])
    weights = inputs["kto_weights"]
    settings = ImplicitPrm(loss="kto", beta=beta, right_weight=weights[0], wrong_weight=weights[1])
    z = doubles(inputs["kto_kl_estimate"])
    losses = kto_losses(torch.cat([right, wrong]), doubles([1, 1, 0, 0]), z, settings)
    close(losses, expected["kto_per_example_chosen_then_rejected"])
    close(losses.mean(), expected["kto_mean"])


def test_kto_weighs_its_classes_and_its_reference_point_has_no_gradient() -> None:
    settings = ImplicitPrm(loss="kto", beta=0.5, right_weight=2.0, wrong_weight=3.0)
    mismatched = torch.tensor([1.0, 3.0], requires_grad=True)
    z = kto_reference_point(mismatched)
    assert z.item() == 2
    assert not z.requires_grad
    assert kto_reference_point(-mismatched).item() == 0
    # At s = z both are 1 − σ(0) = ½, times the weight.
    losses = kto_losses(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 0.0]), z, settings)
    assert losses.tolist() == [1.0, 1.5]


def test_losses_of_certain_mistakes_are_finite() -> None:
    far = torch.tensor([1e5])
    for losses in (dpo_losses, nca_losses):
        assert math.isfinite(losses(-far, far, beta=1.0).item())


def test_every_right_response_meets_every_wrong_one_of_its_problem() -> None:
    labels, group = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0], [0, 0, 0, 1, 1, 2, 0]
    assert pairs_of(labels, group).tolist() == [[0, 1], [2, 1], [6, 1]]
    labels, group = [1.0, 0.0, 1.0, 0.0, 1.0], [5, 5, 5, 5, 5]
    crossed = [[0, 1], [0, 3], [2, 1], [2, 3], [4, 1], [4, 3]]
    assert pairs_of(labels, group).tolist() == crossed
    assert pairs_of(labels, group, "one").tolist() == [[0, 1], [2, 3], [4, 1]]
    assert pairs_of([1.0, 1.0], [0, 0], "one").shape == (0, 2)


def q_of(prefix: str, trained: Table, reference: Table, beta: float) -> float:
    """The running sum of token rewards at the end of a prefix."""
    ours, theirs = (log_probs(prefix, model) for model in (trained, reference))
    mask = torch.ones_like(ours, dtype=torch.bool)
    return token_rewards(ours, theirs, mask, beta=beta).sum().item()


def log_probs(sequence: str, model: Table) -> Tensor:
    """log p of each token, [1, time]."""
    chances = [model[sequence[:t]][int(token)] for t, token in enumerate(sequence)]
    return doubles([chances]).log()


def completions(
    prefix: str, trained: Table, reference: Table, beta: float
) -> tuple[Tensor, Tensor]:
    """Rewards of all completions to length 3, and their chances under the reference."""
    rests = ["".join(rest) for rest in product("01", repeat=3 - len(prefix))]
    rewards = [q_of(prefix + rest, trained, reference, beta) for rest in rests]
    chances = [log_probs(prefix + rest, reference)[0, len(prefix) :].sum() for rest in rests]
    return doubles(rewards), torch.stack(chances).exp()


def soft_value(rewards: Tensor, chances: Tensor, beta: float) -> float:
    """β·log E[exp(r/β)]."""
    return (beta * torch.logsumexp(rewards / beta + chances.log(), 0)).item()


def random_model(seed: int) -> dict[str, Any]:
    """Next-token probabilities behind every prefix of up to two tokens."""
    generator = torch.Generator().manual_seed(seed)
    prefixes = ["".join(p) for length in range(3) for p in product("01", repeat=length)]
    tables = 2 * torch.randn(len(prefixes), 2, generator=generator).double()
    return dict(zip(prefixes, tables.softmax(1).tolist(), strict=True))
