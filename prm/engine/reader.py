"""Runs reads on one model, and each prefix once: within a forward, over requests and over rounds.

    open → join a batch, as far as the token budget goes → run → finished, or joined again

A read asks for values at some of its tokens. What the prefix tree knows costs nothing. What it does
not know needs the hidden state of one token, and for that the keys and values of all before it:
those with a block are used as they are, the others join the packed forward, each once, however many
reads share them. A long read is computed a budget at a time, so that nobody waits for it for longer
than one forward.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from prm.engine.forward import ReadableModel, run_forward
from prm.engine.prefix import Node, PrefixTree
from prm.engine.reads import (
    NotFinite,
    OpenRead,
    known_values,
    num_known,
    num_read_again,
    tokens_needed,
)
from prm.families.base import Read, ReadOutput

# Tokens of one forward, unless it is said otherwise: enough to keep a processor busy, few enough to
# wait for. On a CPU what an operation leaves has to be in the cache for the next: with 8,192 tokens
# a 30M model scores a fifth fewer per second.
TOKEN_BUDGETS = {"cpu": 2048, "cuda": 8192}
# Memory for keys and values per model, unless it is said otherwise.
CACHE_BYTES = 256 << 20
# A token's values are some bytes, its block some thousand.
VALUES_PER_SLOT = 8


class Reader:
    """One model with its prefix tree and key-value pool. Not thread-safe.

    `cache_bytes` bounds the pool; it always has room for one read of the model's full context.
    `token_budget` is of one forward; None takes the device's own.
    """

    def __init__(
        self,
        model: ReadableModel,
        *,
        cache_bytes: int = CACHE_BYTES,
        token_budget: int | None = None,
    ) -> None:
        self.model = model
        self._pool = model.new_pool()
        self.token_budget = token_budget or TOKEN_BUDGETS[self._pool.device.type]
        slots = max(cache_bytes // self._pool.bytes_per_token, model.context_limit)
        self._pool.max_slots = slots
        self.tree = PrefixTree(max_slots=slots, max_tokens=VALUES_PER_SLOT * slots)
        self._holding: dict[OpenRead, None] = {}

    def open(self, read: Read) -> OpenRead:
        """Look up what is known of a read. Raises IndexError for ids the model has no rows for."""
        ids = np.asarray(read.ids, np.int64)
        if ids.min() < 0 or ids.max() >= self.model.num_ids:
            raise IndexError(f"token ids must lie between 0 and {self.model.num_ids - 1}")
        opened = OpenRead(read, ids.astype(np.int32))
        opened.seen = leaf = self.tree.extend(opened.ids)
        opened.cached_values = num_known(read, leaf)
        self.finish_if_known(opened, leaf)
        return opened

    def close(self, opened: OpenRead) -> None:
        """Let go of a read's path: it is finished, or its caller has gone."""
        if opened.leaf is not None:
            self.tree.release(opened.leaf)
            opened.leaf = None
            del self._holding[opened]

    def batch(self) -> "Batch":
        """A new, empty batch."""
        return Batch(self)

    def read(self, reads: Sequence[Read]) -> list[ReadOutput]:
        """All of these, now. Raises NotFinite, IndexError."""
        opened = [self.open(read) for read in reads]
        while waiting := [read for read in opened if not read.is_finished]:
            batch = self.batch()
            for read in waiting:
                if batch.budget_left <= 0:
                    break
                batch.add(read)
            batch.run()
        for read in opened:
            if read.error is not None:
                raise read.error
        return [read.output for read in opened if read.output is not None]

    def deposit(self, ids: Sequence[int], first: int, logprobs: Sequence[float]) -> None:
        """Remember log p(ids[t] | ids[:t]) of t ≥ first, as this very model sampled them."""
        known = np.asarray(logprobs, np.float32)
        leaf = self.tree.extend(ids)
        self.tree.lease(leaf)
        for node in leaf.path():
            if node.end > first:
                start = max(first, node.depth)
                ours = node.logprobs[start - node.depth :]
                theirs = known[start - first : node.end - first]
                is_new = np.isnan(ours) & np.isfinite(theirs)
                ours[is_new] = theirs[is_new]
        # Where nothing is read, this is what forgets the oldest.
        self.tree.release(leaf)

    def run(self, reads: Sequence[OpenRead]) -> list[OpenRead]:
        """One forward for these, which hold their paths; returns those that are finished now."""
        failed = run_forward(self.model, self.tree, self._pool, reads)
        for opened in reads:
            if opened not in failed:
                assert opened.leaf is not None
                self.finish_if_known(opened, opened.leaf)
        for opened in failed:
            self.close(opened)
            if len(reads) > 1:
                self._run_alone(opened)
            else:
                opened.error = NotFinite("the model computed a value that is no finite number")
        return [opened for opened in reads if opened.is_finished]

    def _run_alone(self, opened: OpenRead) -> None:
        """Find out whether it was this read that went wrong, or one that shares its prefix.

        Attention gives a key that must not be seen the weight 0, and 0 times NaN is NaN. Without
        room for all of it now, it stays unfinished and joins another batch.
        """
        while not opened.is_finished:
            batch = self.batch()
            if batch.add(opened) is None:
                return
            batch.run()

    def hold(self, opened: OpenRead) -> Node:
        """Lease a read's path, so that what is computed for it stays; returns where it ends."""
        if opened.leaf is None:
            # Cut in two or not, the node that was seen still ends where the read ends.
            is_there = opened.seen is not None and opened.seen.parent is not None
            opened.leaf = opened.seen if is_there else self.tree.extend(opened.ids)
            assert opened.leaf is not None
            self.tree.lease(opened.leaf)
            self._holding[opened] = None
        return opened.leaf

    def let_others_go(self, opened: OpenRead) -> bool:
        """Take the room of all others for the read that has held its path for longest.

        Parts of several reads can fill the pool and leave no room for anyone's rest. That the
        oldest one always goes on is what makes all of them end. False for any other.
        """
        if next(iter(self._holding)) is not opened:
            return False
        for other in list(self._holding)[1:]:
            self.close(other)
        return True

    def finish_if_known(self, opened: OpenRead, leaf: Node) -> bool:
        """Finish a read that ends at this node if all of its values are there."""
        if (values := known_values(opened.read, leaf)) is None:
            return False
        opened.finish(values)
        self.close(opened)
        return True


class Batch:
    """One forward in the making: `add` reads while there is budget, then `run`."""

    def __init__(self, reader: Reader) -> None:
        self.budget_left = reader.token_budget
        self._reader = reader
        self._reads: dict[OpenRead, None] = {}
        self._known: list[OpenRead] = []
        self._is_pool_full = False

    def add(self, opened: OpenRead, *, at_most: int | None = None) -> int | None:
        """Join with as much of a read as there is budget and room for.

        Returns the tokens that it adds to the forward: of new ones at most `at_most`, and those
        that must be read once more. 0 when all that it still needs is there or was added before by
        another read; None when it cannot join.
        """
        if opened.is_finished:
            return 0
        if self._is_pool_full and opened.leaf is None:
            return None
        leaf = self._reader.hold(opened)
        if self._reader.finish_if_known(opened, leaf):
            self._known.append(opened)
            return 0
        limit = self.budget_left if at_most is None else min(at_most, self.budget_left)
        added = self._reserve(opened, leaf, limit)
        if added is None and limit > 0:
            self._is_pool_full = True
            if not self._reads and self._reader.let_others_go(opened):
                added = self._reserve(opened, leaf, limit)
                assert added, "an empty pool holds one read"
        if added is not None:
            if opened not in self._reads:
                added += num_read_again(opened.read, leaf)
            self._reads[opened] = None
            self.budget_left -= added
        elif opened.num_computed == 0:
            self._reader.close(opened)
        return added

    def run(self) -> list[OpenRead]:
        """Compute; returns the reads that are finished now. See `run_forward` for exceptions."""
        return self._known + (self._reader.run(list(self._reads)) if self._reads else [])

    def _reserve(self, opened: OpenRead, leaf: Node, limit: int) -> int | None:
        """Blocks for what is missing, in order. None when nothing more of it can be computed."""
        tree = self._reader.tree
        end = tree.boundary(leaf, tokens_needed(opened.read, leaf))
        missing = [node for node in end.path() if node.slots is None]
        added = 0
        for node in missing:
            if added >= limit:
                break
            part = node
            if len(node.ids) > limit - added:
                part = tree.boundary(node, node.depth + limit - added)
            if not tree.reserve(part):
                break
            added += len(part.ids)
        opened.num_computed += added
        return added if added or not missing else None


def read_now(models: Mapping[str, ReadableModel], reads: Sequence[Read]) -> list[ReadOutput]:
    """One output per read, nothing kept. Raises NotFinite, IndexError."""
    outputs: dict[int, ReadOutput] = {}
    for name in dict.fromkeys(read.model for read in reads):
        places = [place for place, read in enumerate(reads) if read.model == name]
        found = Reader(models[name]).read([reads[place] for place in places])
        outputs.update(zip(places, found, strict=True))
    return [outputs[place] for place in range(len(reads))]
