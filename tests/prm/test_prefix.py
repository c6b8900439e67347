"""The prefix tree against a plain dictionary of prefixes, and its rules under random use."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from prm.engine.prefix import Node, PrefixTree

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def text_of(leaf: Node) -> list[int]:
    return [token for node in leaf.path() for token in node.ids.tolist()]


@given(st.lists(TOKENS, min_size=1, max_size=20))
def test_a_path_holds_exactly_its_tokens(sequences: list[list[int]]) -> None:
    tree = PrefixTree(max_slots=100, max_tokens=1000)
    for sequence in sequences:
        assert text_of(tree.extend(sequence)) == sequence
    for sequence in sequences:
        assert text_of(tree.extend(sequence)) == sequence
    tree.check_integrity()
    prefixes = {tuple(s[: k + 1]) for s in sequences for k in range(len(s))}
    assert tree.num_tokens == len(prefixes)


@given(TOKENS, TOKENS, st.data())
def test_values_stay_with_their_tokens_through_every_cut(
    first: list[int], second: list[int], data: st.DataObject
) -> None:
    tree = PrefixTree(max_slots=100, max_tokens=1000)
    leaf = tree.extend(first)
    leaf.logprobs[:] = np.arange(len(first))
    leaf.heads = {(place, ()): (float(place),) for place in range(len(first))}
    assert tree.reserve(leaf)
    slots = leaf.slots.tolist() if leaf.slots is not None else []
    tree.extend(second)
    tree.boundary(leaf, data.draw(st.integers(1, len(first))))
    path = tree.extend(first).path()
    assert [v for node in path for v in node.logprobs.tolist()] == list(range(len(first)))
    assert [s for node in path if node.slots is not None for s in node.slots.tolist()] == slots
    for node in path:
        assert {p + node.depth: v for (p, _), v in node.heads.items()} == {
            depth: (float(depth),) for depth in range(node.depth, node.end)
        }
    tree.check_integrity()


def test_the_least_recently_used_end_makes_room_first() -> None:
    tree = PrefixTree(max_slots=6, max_tokens=100)
    trunk = tree.extend([1, 2])
    old, new = tree.extend([1, 2, 3, 3]), tree.extend([1, 2, 4, 4])
    assert all(tree.reserve(node) for node in (trunk, old, new))
    tree.extend([1, 2, 4, 4])
    assert tree.reserve(tree.extend([9]))
    assert old.slots is None
    assert new.slots is not None
    assert trunk.slots is not None
    tree.check_integrity()


def test_nothing_under_a_lease_is_evicted_or_forgotten() -> None:
    tree = PrefixTree(max_slots=4, max_tokens=4)
    leased = tree.extend([1, 2, 3, 4])
    tree.lease(leased)
    assert tree.reserve(leased)
    other = tree.extend([5, 6])
    assert not tree.reserve(other)
    tree.lease(other)
    tree.release(other)
    assert leased.slots is not None
    assert tree.extend([1, 2, 3, 4]) is leased
    tree.release(leased)
    assert tree.reserve(tree.extend([5, 6]))


def test_a_dropped_block_leaves_its_values() -> None:
    tree = PrefixTree(max_slots=2, max_tokens=10)
    node = tree.extend([1, 2])
    assert tree.reserve(node)
    node.logprobs[:] = [-1.0, -2.0]
    assert tree.reserve(tree.extend([3, 4]))
    assert tree.extend([1, 2]).logprobs.tolist() == [-1.0, -2.0]
    assert tree.extend([1, 2]).slots is None


class Usage(RuleBasedStateMachine):
    """Readers that come and go, against a pool that is too small for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = PrefixTree(max_slots=16, max_tokens=40)
        self.leased: list[Node] = []

    @rule(ids=TOKENS)
    def begin(self, ids: list[int]) -> None:
        leaf = self.tree.extend(ids)
        self.tree.lease(leaf)
        self.leased.append(leaf)

    @rule(data=st.data())
    def fill(self, data: st.DataObject) -> None:
        if not self.leased:
            return
        leaf = data.draw(st.sampled_from(self.leased))
        for node in self.tree.boundary(leaf, data.draw(st.integers(1, leaf.end))).path():
            if node.slots is None and not self.tree.reserve(node):
                break
            node.is_pending = False

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.leased:
            index = data.draw(st.integers(0, len(self.leased) - 1))
            self.tree.release(self.leased.pop(index))

    @invariant()
    def holds(self) -> None:
        self.tree.check_integrity()
        reachable = set(self.tree.nodes())
        for leaf in self.leased:
            assert set(leaf.path()) <= reachable


TestUsage = Usage.TestCase
TestUsage.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_lease_cannot_be_given_back_twice() -> None:
    tree = PrefixTree(max_slots=4, max_tokens=8)
    leaf = tree.extend([1, 2])
    tree.lease(leaf)
    tree.release(leaf)
    with pytest.raises(AssertionError, match="more often than leased"):
        tree.release(leaf)
