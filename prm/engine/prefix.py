"""What an engine knows of token prefixes: a tree of runs of tokens, one tree per loaded model.

    root ── "Evaluate (3+4)*2" ─┬─ "3+4=7\\n" ─┬─ "7*2=14"
                                │             └─ "7*2=15"
                                └─ "3+4=8\\n"

A node is one run of tokens. It may hold a *block*: one slot of the key-value pool per token, so
that whatever continues the run need not be computed again. And it may hold *values*: the log-prob
of each of its tokens given all before it, and what the model's head says after some of them. Blocks
are large and go first; values are small and stay, so a prefix that was scored once is answered
without a forward as long as it is remembered.

Two rules keep it consistent. A node with a block has a block in every ancestor, so blocks are given
up from the ends of branches inwards, least recently used first. And what somebody works with is
under a *lease*, and stays.
"""

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Slots = npt.NDArray[np.int64]
Logprobs = npt.NDArray[np.float32]
# What a head said after a token: by the token's place in its node and the labels asked for.
HeadKey = tuple[int, tuple[int, ...]]


class Node:
    """A run of tokens below `parent`; None once it is forgotten. `depth` counts tokens before it.

    `logprobs[i]` is NaN while the log-prob of `ids[i]` is unknown. `slots` is its block or None;
    with `is_pending` the block is reserved and will be filled by the forward that is being made.
    """

    __slots__ = (
        "children",
        "depth",
        "heads",
        "ids",
        "is_pending",
        "leases",
        "logprobs",
        "parent",
        "slots",
        "used",
    )

    def __init__(self, ids: Ids, parent: "Node | None", depth: int) -> None:
        self.ids = ids
        self.parent = parent
        self.depth = depth
        self.children: dict[int, Node] = {}
        self.slots: Slots | None = None
        self.is_pending = False
        self.leases = 0
        self.used = 0
        self.logprobs: Logprobs = np.full(len(ids), np.nan, np.float32)
        self.heads: dict[HeadKey, tuple[float, ...]] = {}

    @property
    def end(self) -> int:
        """Tokens up to and including this run."""
        return self.depth + len(self.ids)

    def path(self) -> list["Node"]:
        """The nodes from below the root down to this one."""
        nodes = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes


class PrefixTree:
    """Prefixes, their blocks within `max_slots`, and their values within `max_tokens`.

    Not thread-safe. `extend` then `lease` a path, work with it, `release` it.
    """

    def __init__(self, *, max_slots: int, max_tokens: int) -> None:
        assert 0 < max_slots <= max_tokens
        self.max_slots = max_slots
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self._root = Node(np.empty(0, np.int32), None, 0)
        # A stack with the lowest slots on top: the pool behind it need not be larger than is used.
        self._free: Slots = np.arange(max_slots - 1, -1, -1, dtype=np.int64)
        self._num_free = max_slots
        self._clock = 0

    @property
    def num_slots_used(self) -> int:
        """Slots that hold a token's keys and values, or are about to."""
        return self.max_slots - self._num_free

    def extend(self, ids: Sequence[int] | Ids) -> Node:
        """The node at which exactly these tokens end; what is not there yet is added, unknown."""
        wanted = np.asarray(ids, np.int32)
        self._clock += 1
        node, at = self._root, 0
        while at < len(wanted):
            child = node.children.get(int(wanted[at]))
            if child is None:
                child = self._attach(node, wanted[at:])
            else:
                same = _common_prefix(child.ids, wanted[at:])
                if same < len(child.ids):
                    child = self._split(child, same)
            child.used = self._clock
            node, at = child, child.end
        return node

    def boundary(self, leaf: Node, depth: int) -> Node:
        """The node on the path to `leaf` that ends at `depth`, which may mean to cut one in two."""
        assert 0 < depth <= leaf.end
        node = leaf
        while node.depth >= depth:
            assert node.parent is not None
            node = node.parent
        return node if node.end == depth else self._split(node, depth - node.depth)

    def lease(self, leaf: Node) -> None:
        """Keep the whole path to this node until it is released."""
        for node in leaf.path():
            node.leases += 1

    def release(self, leaf: Node) -> None:
        """Give up a lease. What nobody leases may be forgotten from now on."""
        for node in leaf.path():
            assert node.leases > 0, "released more often than leased"
            node.leases -= 1
        self._forget_values()

    def reserve(self, node: Node) -> bool:
        """Give the node a block, pending. False when there is no room even after evicting."""
        assert node.slots is None
        assert node.parent is self._root or (node.parent and node.parent.slots is not None)
        missing = len(node.ids) - self._num_free
        if missing > 0 and self._evict(missing) < missing:
            return False
        self._num_free -= len(node.ids)
        taken = self._free[self._num_free : self._num_free + len(node.ids)]
        node.slots = taken[::-1].copy()
        node.is_pending = True
        return True

    def drop_block(self, node: Node) -> int:
        """Free a node's block; its values stay. Returns how many slots that were."""
        assert node.slots is not None
        assert all(child.slots is None for child in node.children.values())
        count = len(node.slots)
        self._free[self._num_free : self._num_free + count] = node.slots[::-1]
        self._num_free += count
        node.slots = None
        node.is_pending = False
        return count

    def nodes(self) -> Iterator[Node]:
        """Every node below the root, parents before children."""
        stack = list(self._root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def check_integrity(self) -> None:
        """Assert the rules of this module's docstring; for tests."""
        slots: list[int] = self._free[: self._num_free].tolist()
        tokens = 0
        for node in self.nodes():
            assert node.parent is not None
            assert node.parent.children[int(node.ids[0])] is node
            assert node.depth == node.parent.end
            assert len(node.ids) == len(node.logprobs) > 0
            assert node.leases >= max((c.leases for c in node.children.values()), default=0)
            assert all(0 <= place < len(node.ids) for place, _ in node.heads)
            tokens += len(node.ids)
            if node.slots is not None:
                assert len(node.slots) == len(node.ids)
                assert node.parent is self._root or node.parent.slots is not None
                slots.extend(node.slots.tolist())
        assert tokens == self.num_tokens
        assert sorted(slots) == list(range(self.max_slots))

    def _attach(self, parent: Node, ids: Ids) -> Node:
        node = Node(ids.copy(), parent, parent.end)
        parent.children[int(ids[0])] = node
        self.num_tokens += len(ids)
        return node

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node in two; the new one is the upper half, so that leases keep their ends."""
        assert node.parent is not None
        assert 0 < at < len(node.ids)
        upper = Node(node.ids[:at], node.parent, node.depth)
        upper.logprobs, node.logprobs = node.logprobs[:at], node.logprobs[at:]
        upper.heads = {key: value for key, value in node.heads.items() if key[0] < at}
        node.heads = {(p - at, k): v for (p, k), v in node.heads.items() if p >= at}
        if node.slots is not None:
            upper.slots, node.slots = node.slots[:at], node.slots[at:]
        upper.is_pending, upper.leases, upper.used = node.is_pending, node.leases, node.used
        node.parent.children[int(upper.ids[0])] = upper
        node.ids = node.ids[at:]
        node.parent = upper
        node.depth += at
        upper.children[int(node.ids[0])] = node
        return upper

    def _evict(self, wanted: int) -> int:
        """Free at least so many slots where possible, least recently used ends first.

        Looking for them costs a walk over the tree, so a little more is freed than is wanted.
        """
        return self._take_oldest(
            max(wanted, self.max_slots // 16), _has_evictable_block, self.drop_block
        )

    def _forget_values(self) -> None:
        """Forget the oldest ends without a block when there are more tokens than allowed."""
        if self.num_tokens > self.max_tokens:
            wanted = self.num_tokens - self.max_tokens + self.max_tokens // 16
            self._take_oldest(wanted, _is_forgettable, self._remove)

    def _take_oldest(
        self, wanted: int, is_takable: Callable[[Node], bool], take: Callable[[Node], int]
    ) -> int:
        order = itertools.count()
        heap = [(node.used, next(order), node) for node in self.nodes() if is_takable(node)]
        heapq.heapify(heap)
        taken = 0
        while heap and taken < wanted:
            _, _, node = heapq.heappop(heap)
            parent = node.parent
            taken += take(node)
            if parent is not None and parent is not self._root and is_takable(parent):
                heapq.heappush(heap, (parent.used, next(order), parent))
        return taken

    def _remove(self, node: Node) -> int:
        assert node.parent is not None
        del node.parent.children[int(node.ids[0])]
        node.parent = None
        self.num_tokens -= len(node.ids)
        return len(node.ids)


def _has_evictable_block(node: Node) -> bool:
    return (
        node.slots is not None
        and node.leases == 0
        and all(child.slots is None for child in node.children.values())
    )


def _is_forgettable(node: Node) -> bool:
    return node.leases == 0 and node.slots is None and not node.children


def _common_prefix(ours: Ids, theirs: Ids) -> int:
    length = min(len(ours), len(theirs))
    differs = ours[:length] != theirs[:length]
    return int(differs.argmax()) if differs.any() else length
