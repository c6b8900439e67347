"""One packed forward over the branches of a prefix tree, and its values written into the tree.

The tokens of all pending blocks lie side by side. A run that continues another one's end lies
behind it in one row; a branch begins a row of its own, which sees its ancestors through the pool.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prm.engine.attention import AttentionPlan, PrefixRows, Row
from prm.engine.kv import KeyValuePool
from prm.engine.prefix import Node, PrefixTree
from prm.engine.reads import OpenRead, places_of
from prm.families.base import HeadRead, LogprobRead

# A log-prob that this forward will fill in; NaN is one that nobody is about to compute.
SCHEDULED = np.float32(np.inf)

Indices = npt.NDArray[np.int64]


class ReadableModel(Protocol):
    """What reading asks of a model."""

    @property
    def num_ids(self) -> int: ...
    @property
    def context_limit(self) -> int: ...
    def new_pool(self) -> KeyValuePool: ...
    def hidden(self, ids: Int[Tensor, "T"], plan: AttentionPlan) -> Float[Tensor, "T size"]: ...
    def target_logprobs(
        self, hidden: Float[Tensor, "n size"], targets: Int[Tensor, "n"]
    ) -> Float[Tensor, "n"]: ...
    def head_values(
        self, hidden: Float[Tensor, "n size"], labels: Sequence[int]
    ) -> Float[Tensor, "n width"]: ...


@dataclass(slots=True)
class _Packed:
    """The tokens of the forward, and where each node's run begins among them."""

    ids: list[npt.NDArray[np.int32]] = field(default_factory=list)
    slots: list[Indices] = field(default_factory=list)
    positions: list[Indices] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    starts: dict[Node, int] = field(default_factory=dict)
    again: dict[tuple[Node, int], int] = field(default_factory=dict)
    length: int = 0

    def add_row(self, nodes: Sequence[Node]) -> None:
        """A chain of pending nodes, each the next one's parent."""
        start = self.length
        for node in nodes:
            self.starts[node] = self._append(node, 0, len(node.ids))
        self.rows.append(Row(start=start, length=self.length - start, context=_context(nodes[0])))

    def sources(self, node: Node, places: Indices) -> Indices:
        """Where the tokens at these places of a node's run lie.

        Their keys and values may be in the pool from an earlier forward; then they are read once
        more for their hidden state.
        """
        if node in self.starts:
            return places + self.starts[node]
        missing = [place for place in places.tolist() if (node, place) not in self.again]
        for begin, end in _runs(missing):
            self._read_again(node, begin, end)
        return np.array([self.again[node, place] for place in places.tolist()], np.int64)

    def _read_again(self, node: Node, begin: int, end: int) -> None:
        """Neighbours in one row: one by one, each would have its whole context gathered for it."""
        assert node.slots is not None
        start = self._append(node, begin, end)
        context = np.concatenate([_context(node), node.slots[:begin]])
        self.rows.append(Row(start=start, length=end - begin, context=context))
        self.again.update(((node, place), start + place - begin) for place in range(begin, end))

    def _append(self, node: Node, begin: int, end: int) -> int:
        assert node.slots is not None
        start = self.length
        self.ids.append(node.ids[begin:end])
        self.slots.append(node.slots[begin:end])
        self.positions.append(np.arange(node.depth + begin, node.depth + end))
        self.length += end - begin
        return start


@dataclass(slots=True)
class _Targets:
    """Log-probs to fill in: of a node's tokens at `places`, from the packed tokens `sources`."""

    node: Node
    places: Indices
    sources: Indices


def run_forward(
    model: ReadableModel, tree: PrefixTree, pool: KeyValuePool, reads: Iterable[OpenRead]
) -> set[OpenRead]:
    """Fill the pending blocks on the paths of these leased reads, and every value that they give.

    Returns the reads with a value that is not finite: nothing of them is kept. After an exception
    (no memory, say) nothing is pending any more and the reads can be tried again.
    """
    reads = list(reads)
    pending = _pending_nodes(reads)
    packed = _Packed()
    for chain in _chains(pending):
        packed.add_row(chain)
    targets: list[_Targets] = []
    heads: dict[tuple[int, ...], dict[tuple[Node, int], int]] = defaultdict(dict)
    for opened in reads:
        before = len(packed.again)
        if isinstance(opened.read, LogprobRead):
            targets += _schedule_logprobs(opened, opened.read, packed)
        else:
            _schedule_heads(opened, opened.read, packed, heads[opened.read.labels])
        opened.num_computed += len(packed.again) - before
    try:
        bad = _compute(model, pool, packed, targets, heads)
    except BaseException:
        for target in targets:
            target.node.logprobs[target.places] = np.nan
        _drop(tree, pending)
        raise
    for node in pending:
        node.is_pending = False
    if bad:
        # Keys and values that gave one bad value give others.
        _drop(tree, pending)
    return {opened for opened in reads if _is_bad(opened, bad)}


def _compute(
    model: ReadableModel,
    pool: KeyValuePool,
    packed: _Packed,
    targets: Sequence[_Targets],
    heads: dict[tuple[int, ...], dict[tuple[Node, int], int]],
) -> set[Node]:
    """The forward; finite values go to their nodes. Returns the nodes that have others."""
    slots = np.concatenate(packed.slots)
    pool.reserve(int(slots.max()) + 1)
    plan = PrefixRows(pool, packed.rows, slots=slots, positions=np.concatenate(packed.positions))
    device = pool.device
    hidden = model.hidden(_on(device, np.concatenate(packed.ids)), plan)
    bad = _spoilt(pool.is_finite(_on(device, slots)), packed)
    if targets:
        sources = _on(device, np.concatenate([target.sources for target in targets]))
        wanted = _on(device, np.concatenate([t.node.ids[t.places] for t in targets]))
        found = model.target_logprobs(hidden.index_select(0, sources), wanted).cpu().numpy()
        begin = 0
        for target in targets:
            values = found[begin : begin + len(target.places)]
            begin += len(target.places)
            if not np.isfinite(values).all():
                bad.add(target.node)
                values = np.full_like(values, np.nan)
            target.node.logprobs[target.places] = values
    for labels, sources_of in heads.items():
        if not sources_of:
            continue
        rows = _on(device, np.fromiter(sources_of.values(), np.int64))
        outputs = model.head_values(hidden.index_select(0, rows), labels).cpu().numpy()
        for (node, place), row in zip(sources_of, outputs, strict=True):
            if np.isfinite(row).all():
                node.heads[(place, labels)] = tuple(row.tolist())
            else:
                bad.add(node)
    return bad


def _pending_nodes(reads: Iterable[OpenRead]) -> list[Node]:
    """Every node whose block is to be filled, ancestors first."""
    nodes: dict[Node, None] = {}
    for opened in reads:
        assert opened.leaf is not None
        nodes.update((node, None) for node in opened.leaf.path() if node.is_pending)
    return sorted(nodes, key=lambda node: node.depth)


def _chains(pending: Sequence[Node]) -> list[list[Node]]:
    """Pending nodes in chains from parent to child, as long as they go."""
    chains: list[list[Node]] = []
    chain_ending_in: dict[Node, list[Node]] = {}
    for node in pending:
        assert node.parent is not None
        chain = chain_ending_in.pop(node.parent, None)
        if chain is None:
            chain = []
            chains.append(chain)
        chain.append(node)
        chain_ending_in[node] = chain
    return chains


def _schedule_logprobs(opened: OpenRead, read: LogprobRead, packed: _Packed) -> list[_Targets]:
    """The unknown log-probs of a read whose tokens before them have, or are about to have, a block.

    Marked as scheduled, so that another read of the same tokens does not ask again.
    """
    assert opened.leaf is not None
    targets = []
    for node in opened.leaf.path():
        assert node.parent is not None
        if node.end > read.first:
            start = max(read.first - node.depth, 0)
            places = np.flatnonzero(np.isnan(node.logprobs[start:])) + start
            inner = places[places > 0] if node.slots is not None else places[:0]
            sources = packed.sources(node, inner - 1)
            if len(places) and places[0] == 0:
                last = np.array([len(node.parent.ids) - 1])
                inner = np.concatenate([places[:1], inner])
                sources = np.concatenate([packed.sources(node.parent, last), sources])
            if len(inner):
                targets.append(_Targets(node, inner, sources))
                node.logprobs[inner] = SCHEDULED
        if node.slots is None:
            break
    return targets


def _schedule_heads(
    opened: OpenRead, read: HeadRead, packed: _Packed, rows: dict[tuple[Node, int], int]
) -> None:
    assert opened.leaf is not None
    for node, group in itertools.groupby(places_of(read, opened.leaf), key=lambda found: found[0]):
        if node.slots is None:
            break
        places = [
            place
            for _, place in group
            if (place, read.labels) not in node.heads and (node, place) not in rows
        ]
        sources = packed.sources(node, np.array(places, np.int64)).tolist()
        rows.update(((node, place), at) for place, at in zip(places, sources, strict=True))


def _spoilt(is_finite: Bool[Tensor, "T"], packed: _Packed) -> set[Node]:
    """The pending nodes whose keys and values would spoil every read that ever shares them.

    Found even where this forward was asked for no value behind them.
    """
    if bool(is_finite.all()):
        return set()
    kept, starts = is_finite.cpu().numpy(), packed.starts.items()
    return {node for node, start in starts if not kept[start : start + len(node.ids)].all()}


def _is_bad(opened: OpenRead, bad: set[Node]) -> bool:
    """Whether it may be this read that went wrong: for a read alone in its forward, it is."""
    assert opened.leaf is not None
    return bool(bad) and any(node in bad for node in opened.leaf.path())


def _drop(tree: PrefixTree, pending: Sequence[Node]) -> None:
    for node in reversed(pending):
        tree.drop_block(node)


def _runs(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending places as stretches without gaps: the first, and the one behind the last."""
    start = 0
    for at in range(1, len(places) + 1):
        if at == len(places) or places[at] != places[at - 1] + 1:
            yield places[start], places[at - 1] + 1
            start = at


def _context(node: Node) -> Indices:
    """The slots of all tokens before a node's run."""
    blocks = [ancestor.slots for ancestor in node.path()[:-1] if ancestor.slots is not None]
    return np.concatenate(blocks) if blocks else np.empty(0, np.int64)


def _on(device: torch.device, array: npt.NDArray[np.int32] | Indices) -> Int[Tensor, "n"]:
    return torch.from_numpy(array.astype(np.int64, copy=False)).to(device)
