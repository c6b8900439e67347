"""The tree's rewards, as the paper's task is written down in the shared vectors."""

import json
from pathlib import Path

import pytest

from training.tasks.tree import Tree

VECTORS = Path(__file__).parents[4] / "shared/vectors/prime_lgrpo.json"


@pytest.mark.skipif(not VECTORS.exists(), reason="needs ../shared/vectors")
def test_rewards_are_the_vectors() -> None:
    block = json.loads(VECTORS.read_text())["C5_tree_environment"]
    inputs, expected = block["inputs"], block["expected"]
    for shared, rewards in ((inputs["n"], expected["reward"]), (2, expected["reward_n2"])):
        tree = Tree(
            target=inputs["target"], shared=shared, bad=inputs["r_neg"], fair=inputs["other"]
        )
        assert {leaf: tree.reward(leaf) for leaf in tree.leaves()} == rewards
    group = [Tree().reward(leaf) for leaf in expected["group_of_4"]["sequences"]]
    assert sum(group) / 4 == pytest.approx(expected["group_of_4"]["mean"])


def test_the_good_leaf_is_alone_behind_the_worse_turn() -> None:
    tree = Tree(bad=-1.5)
    rewards = {leaf: tree.reward(leaf) for leaf in tree.leaves()}
    assert [leaf for leaf, reward in rewards.items() if reward == 1.0] == ["LLRL"]
    left = [reward for leaf, reward in rewards.items() if leaf[0] == "L"]
    assert sum(left) / len(left) < 0 < rewards["RLLL"] < 1.0


@pytest.mark.parametrize(
    "settings", [{"target": ""}, {"target": "LLXL"}, {"shared": 0}, {"shared": 4}]
)
def test_a_tree_that_is_none_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="moves"):
        Tree(**settings)  # type: ignore[arg-type]
