"""PRL: weights on worked numbers, and its gradient against the objective's by enumeration."""

import pytest
import torch
from torch import Tensor

from prm.errors import InvalidInput
from tests.training.algorithms.trees import LEAVES, STATES, table_of, token_logprobs
from tests.training.vectors import block, close, doubles, flags, one_group
from training.algorithms.prl import (
    at_anchor,
    delimiter_ends,
    fixed_length_ends,
    kl_in_reward_advantages,
    prl_advantages,
    value_targets,
)
from training.divergence import kl_to_go, token_kl
from training.settings import Prl
from training.settings.prl import Anchor

EVERY = torch.ones(8, 3).bool()


def test_the_weight_of_every_token() -> None:
    inputs, expected = block("prl.logratio_suffix_rho_token")
    ours, reference = doubles(inputs["logp_policy"]), doubles(inputs["logp_ref"])
    mask = flags(inputs["mask"])
    close(token_kl(ours, reference, mask, "k1"), expected["k"])
    to_go = kl_to_go(ours, reference, mask)
    close(to_go, expected["S"])
    rho = (doubles(inputs["A"])[:, None] - to_go / inputs["eta"]) * mask
    close(rho, expected["rho"])


def test_weights_come_from_rewards() -> None:
    # The same two rollouts in groups of five and their rewards: A as the block has it.
    inputs, expected = block("prl.logratio_suffix_rho_token")
    rewards, _ = block("prl.group_advantage")
    pick = torch.tensor([0, 1])
    ours, reference = doubles(inputs["logp_policy"]), doubles(inputs["logp_ref"])
    rows = torch.tensor([0, 1, 1, 0, 1])
    mask, settings = flags(inputs["mask"]), Prl(eta=inputs["eta"], epsilon=rewards["eps"])
    rho = prl_advantages(
        doubles(rewards["R"]), ours[rows], reference[rows], mask[rows], one_group(5), settings
    )
    outcome = doubles(block("prl.group_advantage")[1]["A_unbiased_std(code,ddof=1)"])
    shift = (outcome[pick] - doubles(inputs["A"]))[:, None] * mask
    close(rho[pick], doubles(expected["rho"]) + shift)


def test_steps_of_fixed_length() -> None:
    inputs, expected = block("prl.rho_step_fixed_length")
    mask, rho = flags(inputs["mask"]), doubles(inputs["rho_token"])
    ends = fixed_length_ends(mask, inputs["step_len"])
    close(ends.float(), expected["step_end_mask"])
    close(at_anchor(rho, ends, mask, "step_end"), expected["rho_step_end(code)"])
    starts = at_anchor(rho, ends, mask, "step_start")
    close(starts, expected["rho_step_start(unbiased alternative)"])


def test_steps_that_end_with_a_delimiter() -> None:
    inputs, expected = block("prl.rho_step_delimiter")
    mask, rho = flags(inputs["mask"]), doubles(inputs["rho_token"])
    ids = torch.tensor(inputs["response_ids"])
    ends = delimiter_ends(ids, mask, torch.tensor([inputs["delimiter_id"]]))
    close(ends.float(), expected["step_end_mask"])
    close(at_anchor(rho, ends, mask, "step_end"), expected["rho_step_end(code)"])
    close(at_anchor(rho, ends, mask, "step_start"), expected["rho_step_start"])


def test_a_step_whose_value_is_0_keeps_it() -> None:
    inputs, expected = block("prl.left_fill_zero_quirk")
    values, ends = doubles(inputs["values_at_step_ends"]), flags(inputs["step_end_mask"])
    ours = at_anchor(values, ends, torch.ones_like(ends), "step_end")
    close(ours, expected["index_driven_result(recommended)"])
    assert (ours - doubles(expected["code_result"])).abs().max() > 0.1


def test_steps_behind_a_prompt() -> None:
    mask = flags([[0, 0, 1, 1, 1, 0]])
    ends = fixed_length_ends(mask, 2)
    assert ends.tolist() == flags([[0, 0, 0, 1, 1, 0]]).tolist()
    values = torch.arange(6.0)[None]
    assert at_anchor(values, ends, mask, "step_start").tolist() == [[0, 0, 2, 2, 4, 0]]
    assert at_anchor(values, ends, mask, "step_end").tolist() == [[0, 0, 3, 3, 4, 0]]
    assert at_anchor(values, ends, mask, "token") is values


def test_a_group_of_equal_rewards_is_pulled_to_the_reference() -> None:
    inputs, expected = block("prl.zero_variance_group")
    mask, sums = flags(inputs["mask"]), doubles(inputs["S"])
    # Log-ratios whose suffix sums are S.
    ratio = (sums - torch.nn.functional.pad(sums[:, 1:], (0, 1))) * mask
    rho = prl_advantages(
        torch.ones(2).double(), ratio, torch.zeros_like(ratio), mask, one_group(2),
        Prl(eta=inputs["eta"]),
    )  # fmt: skip
    close(rho, expected["rho"])
    assert Prl(eta=inputs["eta"]).keeps_flat_groups


def test_the_process_reward_of_a_prefix_is_its_soft_value() -> None:
    inputs, expected = block("prl.soft_value_tree")
    eta, base = inputs["eta"], table_of(inputs["theta0_logits"]).log_softmax(1)
    rewards = doubles([inputs["R"][leaf] for leaf in LEAVES])
    best = table_of(expected["pi_star"]).log()
    reference, optimum = token_logprobs(base), token_logprobs(best)
    tilted = (reference.sum(1) + eta * rewards).softmax(0)
    close(optimum.sum(1).exp(), tilted)
    # From every completion the same value, which is V* of the prefix.
    starts = torch.tensor([-1, 0, 1, 2]).expand(8, 4)
    ends = torch.full((8, 4), 2)
    whole = rewards[:, None].expand(8, 4)
    ours = value_targets(optimum - reference, whole, starts, ends, eta=eta)
    wanted = expected["process_reward_by_prefix"]
    names = [[leaf[:length] or "root" for length in range(4)] for leaf in LEAVES]
    close(ours, [[wanted[name] for name in row] for row in names])
    for state in STATES:
        assert wanted[state] == pytest.approx(expected["V_star"][state], abs=1e-9)
        prefix = "" if state == "root" else state
        behind = [place for place, leaf in enumerate(LEAVES) if leaf.startswith(prefix)]
        chances = reference.sum(1)[behind].softmax(0)
        soft = ((eta * rewards[behind]).exp() @ chances).log() / eta
        assert soft.item() == pytest.approx(expected["V_star"][state], abs=1e-8)
    constant = rewards - (optimum - reference).sum(1) / eta
    close(constant, torch.full((8,), expected["constant_C"]).double())


def test_the_gradient_is_that_of_the_regularised_objective() -> None:
    inputs, expected = block("prl.exact_policy_gradient")
    rewards = doubles([inputs["R"][leaf] for leaf in LEAVES])
    reference = token_logprobs(table_of(inputs["theta0_logits"]))
    theta = table_of(inputs["theta_logits"]).requires_grad_()
    logprobs, eta = token_logprobs(theta), inputs["eta"]
    chances = logprobs.sum(1).exp()
    divergence = chances @ (logprobs - reference).sum(1)
    objective = chances @ rewards - divergence / eta
    assert objective.item() == pytest.approx(expected["Q"], abs=1e-9)
    (exact,) = torch.autograd.grad(objective, theta, retain_graph=True)
    close(exact, table_of(expected["grad_Q"]), atol=1e-6)
    assert exact.norm().item() == pytest.approx(expected["norm_grad_Q"], abs=1e-6)
    ends = fixed_length_ends(EVERY, inputs["step_len"])
    to_go = kl_to_go(logprobs, reference, EVERY)

    def estimated(to_go: Tensor) -> Tensor:
        weight = chances.detach()[:, None] * (rewards[:, None] - to_go / eta)
        (found,) = torch.autograd.grad((weight * logprobs).sum(), theta, retain_graph=True)
        return found

    errors: dict[str, float] = {}
    anchors: tuple[tuple[Anchor, str], ...] = (
        ("token", "token_anchor"),
        ("step_start", "step_start_anchor"),
        ("step_end", "step_end_anchor(code)"),
    )
    for anchor, name in anchors:
        found = estimated(at_anchor(to_go, ends, EVERY, anchor))
        errors[name] = (found - exact).norm().item()
        if f"grad_{name}" in expected:
            close(found, table_of(expected[f"grad_{name}"]), atol=1e-6)
    errors["no_KL"] = (estimated(torch.zeros_like(to_go)) - exact).norm().item()
    here = token_kl(logprobs, reference, EVERY, "k1").detach()
    errors["immediate_k1_only"] = (estimated(here) - exact).norm().item()
    loss_side = 1 - torch.exp(-here)
    errors["k3_loss_side"] = (estimated(loss_side) - exact).norm().item()
    assert errors == pytest.approx(expected["L2_error_vs_grad_Q"], abs=1e-6)


def test_targets_of_a_learned_value() -> None:
    inputs, expected = block("prl.value_regression_target")
    ratio, eta = doubles([inputs["k"]]), inputs["eta"]
    pairs = torch.tensor(inputs["pairs_l_p(0-based prefix end)"])
    values = doubles(inputs["r_u"])[pairs[:, 1]][None]
    ours = value_targets(ratio, values, pairs[None, :, 0], pairs[None, :, 1], eta=eta)
    close(ours[0], expected["y_pairs"])
    starts, ends = torch.arange(5)[None], torch.full((1, 5), 4)
    whole = torch.full((1, 5), inputs["R"]).double()
    close(value_targets(ratio, whole, starts, ends, eta=eta)[0], expected["y_to_end_for_each_l"])


def test_a_kl_inside_the_reward_is_normalised_away() -> None:
    inputs, expected = block("prl.kl_in_reward_vs_decoupled")
    rewards, whole = doubles(inputs["R"]), doubles(inputs["S_1"])
    settings, group = Prl(eta=inputs["eta"]), one_group(5)
    close(kl_in_reward_advantages(rewards, whole, group, settings), expected["A_coupled"])
    mask, zero = torch.ones(5, 1).bool(), torch.zeros(5, 1).double()
    ours = prl_advantages(rewards, whole[:, None], zero, mask, group, settings)
    close(ours[:, 0], expected["A_decoupled_first_token"])
    outcome = prl_advantages(rewards, zero, zero, mask, group, settings)
    close(outcome[:, 0], expected["A_outcome"])


def test_the_weight_is_a_constant() -> None:
    logprobs = torch.rand(4, 3, requires_grad=True)
    ours = prl_advantages(
        torch.rand(4), logprobs, torch.rand(4, 3), torch.ones(4, 3).bool(), one_group(4),
        Prl(eta=5.0),
    )  # fmt: skip
    assert not ours.requires_grad


def test_a_group_of_one_is_refused() -> None:
    one = torch.rand(1, 3)
    with pytest.raises(InvalidInput, match="group_size"):
        prl_advantages(torch.ones(1), one, one, one.bool(), one_group(1), Prl(eta=5.0))
