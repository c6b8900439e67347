"""A read under way, and what of it a prefix tree knows. No torch: positions and known values."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from prm.engine.prefix import Ids, Node
from prm.families.base import HeadRead, LogprobRead, Read, ReadOutput


class NotFinite(Exception):
    """The model computed a value that is no finite number."""


@dataclass(slots=True, eq=False)
class OpenRead:
    """What of a read was known from the start, and what it has cost so far.

    `seen` is where its tokens ended in the tree when it was opened. `leaf` is where they end,
    leased; None while it holds nothing. When it is finished `output` is set, or `error` when its
    values are not finite.
    """

    read: Read
    ids: Ids
    cached_values: int = 0
    num_computed: int = 0
    seen: Node | None = None
    leaf: Node | None = None
    output: ReadOutput | None = None
    error: NotFinite | None = None

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to compute."""
        return self.output is not None or self.error is not None

    def finish(self, values: tuple[float, ...]) -> None:
        """Set the output. A last token that is predicted and not read costs as much as one read."""
        is_predicted = isinstance(self.read, LogprobRead) and self.cached_values < len(values)
        self.output = ReadOutput(
            values=values,
            cached_tokens=max(0, len(self.ids) - self.num_computed - is_predicted),
            cached_values=self.cached_values,
        )


def num_known(read: Read, leaf: Node) -> int:
    """How many of the read's values are known, up to the first that is not."""
    if isinstance(read, HeadRead):
        for count, (node, place) in enumerate(places_of(read, leaf)):
            if (place, read.labels) not in node.heads:
                return count
        return len(read.positions)
    for node in leaf.path():
        start = max(read.first - node.depth, 0)
        is_unknown = ~np.isfinite(node.logprobs[start:])
        if node.end > read.first and is_unknown.any():
            return node.depth + start + int(is_unknown.argmax()) - read.first
    return len(read.ids) - read.first


def known_values(read: Read, leaf: Node) -> tuple[float, ...] | None:
    """All of the read's values, or None when one is unknown."""
    if isinstance(read, HeadRead):
        rows = []
        for node, place in places_of(read, leaf):
            row = node.heads.get((place, read.labels))
            if row is None:
                return None
            rows.append(row)
        return tuple(value for row in rows for value in row)
    parts = [
        node.logprobs[max(read.first - node.depth, 0) :]
        for node in leaf.path()
        if node.end > read.first
    ]
    values = np.concatenate(parts) if parts else np.empty(0, np.float32)
    return tuple(values.tolist()) if np.isfinite(values).all() else None


def tokens_needed(read: Read, leaf: Node) -> int:
    """How many of its first tokens the model must have read for the last unknown value."""
    if isinstance(read, HeadRead):
        unknown = [
            node.depth + place
            for node, place in places_of(read, leaf)
            if (place, read.labels) not in node.heads
        ]
        return unknown[-1] + 1
    for node in reversed(leaf.path()):
        # The log-prob of a token comes from the token before it.
        unknown_places = np.flatnonzero(~np.isfinite(node.logprobs))
        if len(unknown_places) and (last := node.depth + int(unknown_places[-1])) >= read.first:
            return last
    raise AssertionError("nothing is missing")


def num_read_again(read: Read, leaf: Node) -> int:
    """How many of its tokens are in the pool while what they give is unknown: read once more."""
    if isinstance(read, HeadRead):
        return sum(
            _is_filled(node) and (place, read.labels) not in node.heads
            for node, place in places_of(read, leaf)
        )
    return sum(
        int(np.isnan(node.logprobs[max(read.first - node.depth, 0) :]).sum())
        for node in leaf.path()
        if node.end > read.first and _is_filled(node)
    )


def _is_filled(node: Node) -> bool:
    return node.slots is not None and not node.is_pending


def places_of(read: HeadRead, leaf: Node) -> Iterator[tuple[Node, int]]:
    """The node of each position, and the place in it."""
    nodes = iter(leaf.path())
    node = next(nodes)
    for position in read.positions:
        while node.end <= position:
            node = next(nodes)
        yield node, position - node.depth
