"""Many independent runs of GRPO and λ-GRPO on the synthetic tree, side by side.

Advantages, weights and loss are the loop's own; only the policy is none that the loop could load.
Every run is a group of its own, so that nothing passes between two of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from training.algorithms.grpo import grpo_advantages
from training.algorithms.lambda_grpo import lambda_weights
from training.losses import policy_loss
from training.prefix_sets import prefix_sets
from training.settings import Grpo
from training.tasks.tree import MOVES, Tree
from training.weighting import token_weights

Arm = Literal["grpo", "lambda_grpo", "grpo_matched"]
ARMS: tuple[Arm, ...] = ("grpo", "lambda_grpo", "grpo_matched")

TREES = tuple(Tree(shared=shared, bad=bad) for shared in (1, 2) for bad in (-0.5, -1.0, -1.5))
# What the tree's policies are, and how they learn: by parts of a unit's name.
LEARNERS = {
    "table_sgd": "table, SGD 2",
    "table_sgd_half": "table, SGD 1",
    "table_sgd_double": "table, SGD 4",
    "table_adam": "table, Adam 0.05",
    "network_sgd": "network, SGD 0.5",
    "network_adam": "network, Adam 0.001",
}

_SETTINGS = Grpo(normaliser="token_group")
_HIDDEN = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TreePolicies:
    """A policy per run. `parameters` have the runs in front, and so has what `logits` gives: the
    two moves' logits at each inner node, numbered as a heap, node 1 being the root.
    """

    parameters: list[Tensor]
    logits: Callable[[], Float[Tensor, "runs nodes moves"]]


def table(runs: int, depth: int) -> TreePolicies:
    """A number for each move at each node, equal at the start: nothing is shared between nodes."""
    numbers = torch.zeros(runs, 2**depth, len(MOVES), requires_grad=True)
    return TreePolicies(parameters=[numbers], logits=lambda: numbers)


def network(runs: int, depth: int, seed: int) -> TreePolicies:
    """Two hidden layers that read the moves so far: what one node learns moves the others."""
    random = torch.Generator().manual_seed(seed)
    read = _features(depth)
    sizes = (read.shape[1], _HIDDEN, _HIDDEN, len(MOVES))
    parameters = []
    for before, after in pairwise(sizes):
        bound = before**-0.5
        for shape in ((runs, before, after), (runs, 1, after)):
            drawn = (torch.rand(shape, generator=random) * 2 - 1) * bound
            parameters.append(drawn.requires_grad_())

    def logits() -> Tensor:
        values = read.expand(runs, -1, -1)
        layers = list(zip(parameters[::2], parameters[1::2], strict=True))
        for place, (weight, bias) in enumerate(layers):
            values = torch.baddbmm(bias, values, weight)
            if place < len(layers) - 1:
                values = values.relu()
        return values

    return TreePolicies(parameters=parameters, logits=logits)


def shares_by_tree(
    learner: str, seed: int, *, runs: int, steps: int
) -> list[dict[Arm, list[float]]]:
    """What `run_tree` tells of each arm on each of `TREES`, for one of `LEARNERS`."""
    return [
        {arm: _shares(tree, arm, learner, seed, runs=runs, steps=steps) for arm in ARMS}
        for tree in TREES
    ]


def _shares(tree: Tree, arm: Arm, learner: str, seed: int, *, runs: int, steps: int) -> list[float]:
    depth = len(tree.target)
    is_table = learner.startswith("table")
    policies = table(runs, depth) if is_table else network(runs, depth, seed)
    lr = float(LEARNERS[learner].split()[-1])
    kind = torch.optim.SGD if "sgd" in learner else torch.optim.Adam
    return run_tree(tree, arm, policies, kind(policies.parameters, lr=lr), steps=steps, seed=seed)


def run_tree(
    tree: Tree,
    arm: Arm,
    policies: TreePolicies,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    group_size: int = 16,
    seed: int,
    last: int = 50,
) -> list[float]:
    """Each run's share of the target leaf among what it wrote in the last `last` steps.

    "grpo_matched" takes GRPO's gradient, as long in every step as λ-GRPO's of the same rollouts.
    """
    random = torch.Generator().manual_seed(seed)
    rewards = torch.tensor([tree.reward(leaf) for leaf in tree.leaves()])
    target = tree.leaves().index(tree.target)
    runs = len(policies.parameters[0])
    group = torch.arange(runs).repeat_interleave(group_size)
    hits = torch.zeros(runs)
    for step in range(steps):
        moves, nodes = _write(policies.logits().detach(), group, len(tree.target), random)
        leaves = nodes[:, -1] * 2 + moves[:, -1] - len(rewards)
        if step >= steps - last:
            hits += (leaves == target).view(runs, group_size).float().mean(1)
        gradients = gradients_of(arm, policies, moves, nodes, group, rewards[leaves])
        for parameter, gradient in zip(policies.parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [float(share) for share in hits / min(last, steps)]


def _write(
    logits: Float[Tensor, "runs nodes moves"],
    group: Int[Tensor, "rows"],
    depth: int,
    random: torch.Generator,
) -> tuple[Int[Tensor, "rows depth"], Int[Tensor, "rows depth"]]:
    """Moves drawn at temperature 1, and the node that each was made at."""
    chances = logits.softmax(-1)
    node = torch.ones_like(group)
    moves, nodes = [], []
    for _ in range(depth):
        move = (torch.rand(len(group), generator=random) >= chances[group, node, 0]).long()
        moves.append(move)
        nodes.append(node)
        node = 2 * node + move
    return torch.stack(moves, 1), torch.stack(nodes, 1)


def gradients_of(
    arm: Arm,
    policies: TreePolicies,
    moves: Int[Tensor, "rows depth"],
    nodes: Int[Tensor, "rows depth"],
    group: Int[Tensor, "rows"],
    rewards: Float[Tensor, "rows"],
) -> Sequence[Tensor]:
    """Of each run's own loss: the mean over the tokens of its group."""
    mask = torch.ones_like(moves, dtype=torch.bool)
    taken = policies.logits().log_softmax(-1)[group[:, None], nodes]
    logprobs = taken.gather(2, moves[:, :, None])[:, :, 0]
    advantages = grpo_advantages(rewards, mask, group, _SETTINGS)
    plain = token_weights(mask, group, "token_group") * len(policies.parameters[0])

    def of(weights: Tensor) -> tuple[Tensor, ...]:
        part = policy_loss(_SETTINGS, logprobs, logprobs.detach(), advantages, weights, mask)
        return torch.autograd.grad(part.loss, policies.parameters, retain_graph=True)

    if arm == "grpo":
        return of(plain)
    counted_once = of(lambda_weights(plain, prefix_sets(moves, mask, group)))
    if arm == "lambda_grpo":
        return counted_once
    ours = of(plain)
    factor = _norms(counted_once) / _norms(ours).clamp(min=1e-12)
    return [gradient * factor[:, None, None] for gradient in ours]


def _norms(gradients: Sequence[Tensor]) -> Float[Tensor, "runs"]:
    flat = torch.cat([gradient.flatten(1) for gradient in gradients], 1)
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return norms


def _features(depth: int) -> Float[Tensor, "nodes features"]:
    """One-hot: at each depth, one of the moves or none yet. Row 0 is no node."""
    rows = torch.zeros(2**depth, depth, len(MOVES) + 1)
    for node in range(1, 2**depth):
        moves = [int(bit) for bit in bin(node)[3:]]
        for place in range(depth):
            rows[node, place, moves[place] if place < len(moves) else len(MOVES)] = 1
    return rows.flatten(1)
