"""λ-GRPO: process sets on worked groups and by brute force, and the paper's theorem."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.training.vectors import block, close, doubles, ids_of, mask_of, one_group, padded
from training.algorithms.grpo import grpo_advantages
from training.algorithms.lambda_grpo import lambda_weights, process_advantages
from training.losses import policy_loss
from training.prefix_sets import PrefixSets, prefix_sets
from training.settings import LambdaGrpo
from training.settings.base import Normaliser
from training.tasks.tree import Tree
from training.weighting import token_weights

EXACT = LambdaGrpo(epsilon=0.0)
Rows = Sequence[Sequence[int] | str]


def test_the_papers_figure() -> None:
    inputs, expected = block("C1_lambda_grpo_paper_figure")
    check_sets(inputs["sequences"], inputs["reward"], expected)


def test_the_same_with_the_codes_epsilon() -> None:
    inputs, expected = block("C1b_same_with_code_epsilon")
    rows = inputs["sequences"]
    ours = grpo_advantages(
        doubles(inputs["reward"]), mask_of(rows), one_group(6),
        LambdaGrpo(epsilon=inputs["std_epsilon"]),
    )  # fmt: skip
    close(ours[:, 0], expected["trajectory_advantage"])
    assert LambdaGrpo().epsilon == inputs["std_epsilon"]


def test_copies_share_a_leaf() -> None:
    inputs, expected = block("C2_four_sequences_with_duplicate")
    check_sets(inputs["sequences"], inputs["reward"], expected)


def test_a_response_that_others_continue() -> None:
    inputs, expected = block("C3_prefix_of_another")
    check_sets(inputs["sequences"], inputs["reward"], expected)


@pytest.mark.parametrize("normaliser", ["token_level_dapo", "sequence_mean_grpo"])
@pytest.mark.parametrize("regime", ["on_policy_mu1", "off_policy_clipped_no_kl"])
def test_objectives_of_grpo_its_prm_and_lambda_grpo(normaliser: str, regime: str) -> None:
    inputs, expected = block("C4_losses")
    wanted = expected[regime][normaliser]
    which: Normaliser = "token_group" if normaliser == "token_level_dapo" else "sequence"
    objectives = objectives_of(inputs, which, is_on_policy=regime == "on_policy_mu1")
    for name, value in wanted.items():
        assert objectives[name].item() == pytest.approx(value, abs=1e-7)
    # The theorem holds where it says so, and nowhere else.
    is_equal = abs(objectives["L_GRPO"] - objectives["L_PRM"]).item() < 1e-9
    assert is_equal == (normaliser == "token_level_dapo" and regime == "on_policy_mu1")


def test_gradients_of_grpo_and_lambda_grpo() -> None:
    inputs, expected = block("C4_losses")
    wanted = expected["grad_of_objective_wrt_logp_token_level"]
    for name, key in (("L_GRPO", "GRPO"), ("L_lambda_GRPO", "lambda_GRPO")):
        logprobs = padded(inputs["logp"]).requires_grad_()
        objective = objectives_of(inputs, "token_group", True, logprobs)[name]
        (gradient,) = torch.autograd.grad(objective, logprobs)
        close(gradient, padded(wanted[key]))


def test_the_tree_task_and_its_groups() -> None:
    inputs, expected = block("C5_tree_environment")
    tree = Tree(
        target=inputs["target"], shared=inputs["n"], bad=inputs["r_neg"], fair=inputs["other"]
    )
    assert {leaf: tree.reward(leaf) for leaf in tree.leaves()} == expected["reward"]
    wider = Tree(target=inputs["target"], shared=2, bad=inputs["r_neg"], fair=inputs["other"])
    assert {leaf: wider.reward(leaf) for leaf in wider.leaves()} == expected["reward_n2"]
    few = expected["group_of_4"]
    check_sets(few["sequences"], [tree.reward(leaf) for leaf in few["sequences"]], few)
    leaves = tree.leaves()
    rewards, group = doubles([tree.reward(leaf) for leaf in leaves]), one_group(16)
    sets = prefix_sets(ids_of(leaves), mask_of(leaves), group)
    standard = grpo_advantages(rewards, mask_of(leaves), group, EXACT)[:, 0]
    induced = process_advantages(rewards, group, sets, EXACT)
    for step in expected["group_of_all_16_leaves_first_level"]:
        rows = [place for place, leaf in enumerate(leaves) if leaf[0] == step["tokens"][0]]
        assert sets.size[rows, 0].tolist() == [step["size"]] * 8
        assert sets.mean_rewards(rewards)[rows[0], 0].item() == pytest.approx(step["step_reward"])
        advantage = induced[rows[0], 0].item()
        assert advantage == pytest.approx(step["step_advantage"], abs=1e-7)
        total = standard[rows].sum().item()
        assert total == pytest.approx(step["grpo_weight_sum_of_advantages"], abs=1e-7)
        lone = (standard * sets.loss_weights()[:, 0])[rows].sum().item()
        assert lone == pytest.approx(step["lambda_grpo_weight"], abs=1e-7)


Groups = st.lists(
    st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=7),
    min_size=1,
    max_size=4,
)


@given(Groups, st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_sets_are_those_of_the_definition(groups: list[list[list[int]]], seed: int) -> None:
    ids, mask, group = shuffled(groups, seed)
    sets = prefix_sets(ids, mask, group)
    for row in range(len(ids)):
        for place in range(ids.shape[1]):
            members = members_by_definition(ids, mask, group, row, place)
            assert sets.size[row, place].item() == len(members)
            if members:
                same = (sets.node[:, place] == sets.node[row, place]) & mask[:, place]
                assert same.nonzero().flatten().tolist() == members


@given(Groups, st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_the_weights_of_every_tree_edge_sum_to_1(groups: list[list[list[int]]], seed: int) -> None:
    ids, mask, group = shuffled(groups, seed)
    weights = prefix_sets(ids, mask, group).loss_weights()
    edges: dict[tuple[int, ...], float] = {}
    for row, place in mask.nonzero().tolist():
        edge = (int(group[row]), *ids[row, : place + 1].tolist())
        edges[edge] = edges.get(edge, 0.0) + weights[row, place].item()
    assert list(edges.values()) == pytest.approx([1.0] * len(edges), abs=1e-6)


@given(Groups, st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_steps_are_runs_of_one_set(groups: list[list[list[int]]], seed: int) -> None:
    ids, mask, group = shuffled(groups, seed)
    sets = prefix_sets(ids, mask, group)
    for row in range(len(ids)):
        steps: list[int] = []
        last: list[int] | None = None
        for place in range(int(mask[row].sum())):
            members = members_by_definition(ids, mask, group, row, place)
            steps.append(steps[-1] + (members != last) if steps else 0)
            last = members
        assert sets.step[row][mask[row]].tolist() == steps
        assert (sets.step[row][~mask[row]] == -1).all()


def test_where_nothing_is_shared_it_is_grpo() -> None:
    rows = [[1, 5, 5], [2, 5], [3, 5, 5]]
    sets = prefix_sets(ids_of(rows), mask_of(rows), one_group(3))
    weights = token_weights(mask_of(rows), one_group(3), "token_group")
    assert torch.equal(lambda_weights(weights, sets), weights)
    assert sets.diagnostics(one_group(3)) == {"path_depth": 1, "intermediate": 0, "flat": 1}


def test_diagnostics_by_hand() -> None:
    # A group of AB, AC (depth 2, half shared) and one that shares nothing.
    rows, group = ["AB", "AC", "AB", "CB"], torch.tensor([0, 0, 1, 1])
    found = prefix_sets(ids_of(rows), mask_of(rows), group).diagnostics(group)
    assert found == {"path_depth": 1.5, "intermediate": 0.25, "flat": 0.5}


def test_a_prompt_before_the_responses_changes_nothing() -> None:
    rows = ["AB", "AC", "B"]
    sets = prefix_sets(ids_of(rows), mask_of(rows), one_group(3))
    ids = torch.nn.functional.pad(ids_of(rows), (4, 0), value=9)
    mask = torch.nn.functional.pad(mask_of(rows), (4, 0))
    behind = prefix_sets(ids, mask, one_group(3))
    assert torch.equal(behind.size[:, 4:], sets.size)
    assert torch.equal(behind.step[:, 4:], sets.step)


def test_the_theorem_holds_for_a_model_and_fails_outside_its_conditions() -> None:
    model, ids, mask, group, rewards = sampled_groups()
    sets = prefix_sets(ids, mask, group)
    assert sets.diagnostics(group)["intermediate"] > 0.3
    assert (mask.sum(1).amax() > mask.sum(1).amin()).item()
    plain = grpo_advantages(rewards, mask, group, EXACT)
    induced = process_advantages(rewards, group, sets, EXACT)
    assert (plain - induced).abs().max() > 0.1
    drift = 0.6 * torch.sin(ids.double())
    cases: tuple[tuple[Normaliser, bool, bool], ...] = (
        ("token_group", True, True),
        ("token_batch", True, True),
        ("sequence", True, False),
        ("token_group", False, False),
    )
    for normaliser, is_on_policy, is_equal in cases:
        weights = token_weights(mask, group, normaliser)
        results = []
        for advantages in (plain, induced):
            logprobs = model(ids)
            old = logprobs.detach() if is_on_policy else logprobs.detach() + drift
            part = policy_loss(
                LambdaGrpo(kl_coefficient=0.1), logprobs, old, advantages, weights, mask,
                reference_logprobs=logprobs.detach() - 0.3 * drift,
            )  # fmt: skip
            gradients = torch.autograd.grad(part.loss, list(model.parameters()))
            results.append((part.loss, torch.cat([g.flatten() for g in gradients])))
        (value, gradient), (other_value, other_gradient) = results
        apart = max((value - other_value).abs(), (gradient - other_gradient).abs().max()).item()
        assert (apart < 1e-6) == is_equal, f"{normaliser}, on policy {is_on_policy}: {apart}"
        assert is_equal or apart > 1e-4


def test_a_large_batch_takes_milliseconds() -> None:
    # 64 groups of 8 responses of 512 tokens, which part at a random place: 262,144 tokens.
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(64).repeat_interleave(8)
    ids = torch.randint(5, 32_000, (64, 1, 512), generator=generator).repeat(1, 8, 1)
    parting = torch.randint(0, 512, (64, 8, 1), generator=generator)
    other = torch.randint(5, 32_000, (64, 8, 512), generator=generator)
    ids = torch.where(torch.arange(512) < parting, ids, other).reshape(512, 512)
    mask = torch.ones(512, 512).bool()
    prefix_sets(ids[:8], mask[:8], group[:8])
    started = time.process_time()
    sets = prefix_sets(ids, mask, group)
    assert time.process_time() - started < 0.5
    assert 0.2 < sets.diagnostics(group)["intermediate"] < 0.8


def check_sets(rows: Rows, rewards: Sequence[float], expected: dict[str, Any]) -> None:
    """Sizes, weights, rewards, advantages and the list of process sets of one group."""
    group, mask = one_group(len(rows)), mask_of(rows)
    sets = prefix_sets(ids_of(rows), mask, group)
    close(sets.size, padded(expected["process_set_size"]))
    close(sets.loss_weights(), padded(expected["loss_scale"]))
    rewards_of = doubles(rewards)
    assert rewards_of.mean().item() == pytest.approx(expected["mean"])
    assert rewards_of.std().item() == pytest.approx(expected["std_ddof1"])
    standard = grpo_advantages(rewards_of, mask, group, EXACT)
    close(standard[:, 0], expected["trajectory_advantage"])
    close(sets.mean_rewards(rewards_of), padded(expected["token_reward_R"]))
    induced = process_advantages(rewards_of, group, sets, EXACT)
    close(induced, padded(expected["token_advantage_A"]))
    assert int(mask.sum()) == expected.get("total_tokens", int(mask.sum()))
    found = list_sets(sets)
    wanted = {
        (tuple(step["members"]), tuple(step["span"])): step for step in expected["process_sets"]
    }
    assert found == set(wanted)
    for (members, span), step in wanted.items():
        row, first = members[0], span[0]
        advantage = induced[row, first].item()
        assert len(members) == step["size"] == sets.size[row, first].item()
        assert advantage == pytest.approx(step["step_advantage"], abs=1e-7)
        total = standard[list(members), first].sum().item()
        assert total == pytest.approx(step["grpo_weight_sum_of_advantages"], abs=1e-7)
        assert total / step["size"] == pytest.approx(step["lambda_grpo_weight"], abs=1e-7)
        assert list(rows[row][slice(*span)]) == step["tokens"]


def list_sets(sets: PrefixSets) -> set[tuple[tuple[int, ...], tuple[int, int]]]:
    """(members, span) of every process step."""
    found = set()
    for row in range(len(sets.size)):
        for step in range(int(sets.step[row].max()) + 1):
            places = (sets.step[row] == step).nonzero().flatten().tolist()
            same = sets.node[:, places[0]] == sets.node[row, places[0]]
            inside = same & (sets.size[:, places[0]] > 0)
            members = tuple(inside.nonzero().flatten().tolist())
            found.add((members, (places[0], places[-1] + 1)))
    return found


def objectives_of(
    inputs: dict[str, Any],
    normaliser: Normaliser,
    is_on_policy: bool,
    logprobs: Tensor | None = None,
) -> dict[str, Tensor]:
    """What is maximised, by name."""
    rows = inputs["sequences"]
    mask, group, rewards = mask_of(rows), one_group(len(rows)), doubles(inputs["reward"])
    logprobs = padded(inputs["logp"]) if logprobs is None else logprobs
    sets = prefix_sets(ids_of(rows), mask, group)
    plain = grpo_advantages(rewards, mask, group, EXACT)
    induced = process_advantages(rewards, group, sets, EXACT)
    weights = token_weights(mask, group, normaliser).double()
    clip = inputs["clip_eps"]
    chosen = LambdaGrpo(
        clip_low=clip, clip_high=clip, kl_coefficient=inputs["kl_beta"] if is_on_policy else 0.0
    )
    old = logprobs.detach() if is_on_policy else padded(inputs["logp_old_for_mu_gt_1"])
    reference = padded(inputs["logp_ref"]) if is_on_policy else None

    def objective(advantages: Tensor, token_weights: Tensor) -> Tensor:
        part = policy_loss(
            chosen, logprobs, old, advantages, token_weights, mask, reference_logprobs=reference
        )
        return -part.loss

    return {
        "L_GRPO": objective(plain, weights),
        "L_PRM": objective(induced, weights),
        "L_lambda_GRPO": objective(plain, lambda_weights(weights, sets)),
    }


def shuffled(groups: list[list[list[int]]], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of all groups in random order, with what stands behind their ends left unread."""
    rows = [(number, row) for number, group in enumerate(groups) for row in group]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator).tolist()
    rows = [rows[place] for place in order]
    longest = max(1, *(len(row) for _, row in rows)) if rows else 1
    ids = torch.randint(0, 3, (len(rows), longest), generator=generator)
    mask = torch.zeros(len(rows), longest).bool()
    for place, (_, row) in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[place, : len(row)] = True
    return ids, mask, torch.tensor([number for number, _ in rows])


def members_by_definition(
    ids: Tensor, mask: Tensor, group: Tensor, row: int, place: int
) -> list[int]:
    """λ(row, place), compared token by token."""
    if not mask[row, place]:
        return []
    return [
        other
        for other in range(len(ids))
        if group[other] == group[row]
        and mask[other, place]
        and torch.equal(ids[other, : place + 1], ids[row, : place + 1])
    ]


class TinyLM(nn.Module):
    """A recurrent language model in float64: log-probs of given rows, [rows, time]."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, 8)
        self.body = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, vocab)
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        before = torch.nn.functional.pad(ids[:, :-1], (1, 0))
        hidden, _ = self.body(self.embedding(before))
        table = self.head(hidden).log_softmax(-1)
        found: Tensor = table.gather(2, ids[..., None]).squeeze(2)
        return found


def sampled_groups() -> tuple[TinyLM, Tensor, Tensor, Tensor, Tensor]:
    """A model, and three groups of eight sampled rows that end at the token 0."""
    torch.manual_seed(0)
    model = TinyLM(3)
    ids = torch.randint(0, 3, (24, 7))
    ids[:, 0] = torch.randint(1, 3, (24,))
    ended = (ids == 0).cumsum(1) > 0
    mask = ~torch.nn.functional.pad(ended[:, :-1], (1, 0))
    return model, ids * mask, mask, torch.arange(3).repeat_interleave(8), torch.rand(24).double()
