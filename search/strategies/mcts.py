"""Monte Carlo tree search over steps, a PRM's score in the place of rollouts.

Chen et al., "AlphaMath Almost Zero", arXiv 2405.03553 §3: from the root down, the child with the
largest PUCT

    Q(child) + exploration · P(child) · √N(parent) / (1 + N(child))

is taken until a leaf is reached; the leaf is expanded, its children are valued by a model instead
of being rolled out, and the values are backed up to the root. N counts the values in a subtree,
Q is their mean, or their largest with `backup: "max"`. The prior P is uniform over siblings: they
are samples of the policy already, so that its likings show in what is there.

Up to `n` leaves are selected before any is expanded, so that a round is one full batch of
n · width continuations. Those selected and not yet valued count as visits of value 0 on their way
to the root: the virtual loss of Chaslot et al., "Parallel Monte-Carlo Tree Search" (2008). Where
fewer leaves are open than that (at first there is only the root), they share the batch. A leaf that
has ended, or under which all have ended, is not selected again: nothing would be learnt there.

Few simulations may not reach the end of any text. Then the open leaf of the highest score is
written to its end, in one continuation beyond the simulations, so that the search has an answer.
Until a text has ended, simulations leave a quarter of the budget for that, and at most `max_tokens`
of it; a leaf that they have cut in the middle of a step may be the one that is written on.
"""

import math
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from itertools import cycle, islice
from typing import Literal

from pydantic import Field

from search.ranking import by_score
from search.run import SearchRun
from search.strategies.base import MAX_CANDIDATES, SteeredSettings
from search.strategies.stepwise import StepRound, end_active, event
from search.types import Candidate, SearchEvent

# Of the budget, for the one text that is written to its end.
RESERVE = 0.25


class Mcts(SteeredSettings):
    """`n` leaves a round, each expanded `width` times; a simulation is one leaf's expansion."""

    type: Literal["mcts"] = "mcts"
    n: int = Field(default=4, ge=1, le=MAX_CANDIDATES)
    width: int = Field(default=4, ge=1, le=MAX_CANDIDATES)
    simulations: int = Field(default=32, ge=1, le=1_000_000)
    max_rounds: int = Field(default=40, ge=1, le=1000)
    exploration: float = Field(default=1.25, ge=0, le=1000, allow_inf_nan=False)
    backup: Literal["mean", "max"] = "mean"

    @property
    def sizes(self) -> Mapping[str, int]:
        """See `StrategySettings.sizes`."""
        return {"n": self.n, "width": self.width}

    async def rounds(self, run: SearchRun) -> AsyncGenerator[SearchEvent]:
        """Select, expand, back up; `run.candidates` ends as what has ended and the open leaves."""
        tree = _Tree(self.exploration, self.backup)
        ended: list[Candidate] = []
        run.meter.keep_back(RESERVE, at_most_tokens=run.sampling.max_tokens)
        async with aclosing(self._simulate(run, tree, ended)) as events:
            async for each in events:
                yield each
        run.meter.release()
        active = tree.open_candidates()
        if not _has_answer(ended):
            async with aclosing(self._finish_best(run, active, ended)) as events:
                async for each in events:
                    yield each
        left, ends = end_active(run, active, round_=run.rounds - 1)
        for each in ends:
            yield each
        run.candidates = ended + left

    async def _simulate(
        self, run: SearchRun, tree: "_Tree", ended: list[Candidate]
    ) -> AsyncGenerator[SearchEvent]:
        """Rounds until the simulations, the rounds or the budget are used up; fills `ended`."""
        simulated = 0
        for number in range(self.max_rounds):
            wanted = min(self.n, self.simulations - simulated)
            leaves = tree.select(wanted)
            continued = islice(cycle(leaves), wanted * self.width if leaves else 0)
            parents = [leaf.candidate for leaf in continued]
            parents = parents[: run.affordable(len(parents))]
            if not parents:
                tree.release(leaves)
                break
            round_ = StepRound(run, number, aggregation=self.aggregation)
            async with aclosing(round_.events(parents)) as events:
                async for each in events:
                    yield each
            tree.release(leaves)
            tree.grow(sorted([*round_.active, *round_.ended], key=lambda child: child.index))
            ended += round_.ended
            if _has_answer(round_.ended):
                run.meter.release()
            simulated += wanted
            if run.stopped_by != "finished":
                return
        is_done = simulated == self.simulations
        if run.stopped_by == "finished" and not is_done and tree.open_candidates():
            run.stopped_by = "max_rounds"

    async def _finish_best(
        self, run: SearchRun, active: list[Candidate], ended: list[Candidate]
    ) -> AsyncGenerator[SearchEvent]:
        """Write the best text to its end with what the budget has left: it is `ended`.

        That is one of `active`, or of `ended`, which the simulations' part of the budget has cut.
        """
        unfinished = [*active, *ended]
        if not unfinished or run.affordable(1) == 0:
            return
        best, number = by_score(unfinished)[0], run.rounds
        async with aclosing(run.write([best], one_step=False)) as written:
            async for child in written:
                yield event("expanded", number, child, text=child.text)
        (active if best in active else ended).remove(best)
        (child,) = await run.score([child], aggregation=self.aggregation, must_read=False)
        ended.append(child)
        yield event("finished", number, child)


def _has_answer(ended: Sequence[Candidate]) -> bool:
    """Whether one of these came to its end, and not to that of the budget."""
    return any(candidate.finish_reason in ("stop", "length") for candidate in ended)


class _Node:
    """A candidate in the tree; the root has none.

    `visits` values were found in its subtree, its own among them; `pending` leaves of it are
    selected and `open` ones, itself included, can be.
    """

    __slots__ = ("best", "candidate", "children", "open", "parent", "pending", "total", "visits")

    def __init__(self, candidate: Candidate | None, parent: "_Node | None") -> None:
        self.candidate = candidate
        self.parent = parent
        self.children: list[_Node] = []
        self.visits = self.pending = self.open = 0
        self.total = self.best = 0.0

    def to_root(self) -> "Iterator[_Node]":
        node: _Node | None = self
        while node is not None:
            yield node
            node = node.parent


class _Tree:
    """The values of a search, and whom they say to expand next. Equals: the first written."""

    def __init__(self, exploration: float, backup: Literal["mean", "max"]) -> None:
        self._exploration = exploration
        self._backup = backup
        self._root = _Node(None, None)
        self._root.open = 1
        self._nodes: dict[int | None, _Node] = {None: self._root}

    def select(self, number: int) -> list[_Node]:
        """Up to so many different leaves; each counts as a loss until it is released."""
        leaves: list[_Node] = []
        while len(leaves) < number and self._root.open:
            node = self._root
            while node.children:
                node = max((child for child in node.children if child.open), key=self._puct)
            leaves.append(node)
            for above in node.to_root():
                above.open -= 1
                above.pending += 1
        return leaves

    def release(self, leaves: list[_Node]) -> None:
        """Take back the virtual losses; a leaf without children afterwards is open again."""
        for leaf in leaves:
            for above in leaf.to_root():
                above.open += 1
                above.pending -= 1

    def grow(self, children: list[Candidate]) -> None:
        """Hang in what was written and back its score up; no score is worth 0."""
        for candidate in children:
            parent = self._nodes[candidate.parent]
            if not parent.children:
                # It was a leaf, and its children stand in its place.
                for above in parent.to_root():
                    above.open -= 1
            node = self._nodes[candidate.index] = _Node(candidate, parent)
            parent.children.append(node)
            value = candidate.score or 0.0
            for above in node.to_root():
                above.visits += 1
                above.total += value
                above.best = max(above.best, value)
                above.open += candidate.finish_reason is None

    def open_candidates(self) -> list[Candidate]:
        """Candidates of the leaves that can still be continued, in the order written."""
        return [
            node.candidate
            for node in self._nodes.values()
            if node.candidate is not None and node.open and not node.children
        ]

    def _puct(self, node: _Node) -> float:
        assert node.parent is not None
        visits = node.visits + node.pending
        total = node.total if self._backup == "mean" else node.best * node.visits
        prior = 1 / len(node.parent.children)
        parent_visits = node.parent.visits + node.parent.pending
        return total / visits + self._exploration * prior * math.sqrt(parent_visits) / (1 + visits)
