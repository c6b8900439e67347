"""Diverse verifier tree search: independent subtrees, each followed greedily (Beeching et al.,
"Scaling test-time compute with open models", 2024, section "DVTS: boosting performance with
diversity"; their code is search-and-learn).

The n / width subtrees write `width` steps each in every round, and each goes on from the best of
its own; no subtree is held against another before the end, so that none takes over. A subtree ends
when its best step is the end of a text. All ended texts of all subtrees are candidates, also those
that were not the best of theirs: they are written and scored, and one may be the best of all.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar, Literal

from search.ranking import by_score
from search.run import SearchRun
from search.strategies.base import BranchingSettings
from search.strategies.expanding import expand
from search.types import Candidate, SearchEvent


class Dvts(BranchingSettings):
    """`n` steps per round in n / width subtrees, of which each keeps the best of its `width`."""

    is_forward_only: ClassVar[bool] = True

    type: Literal["dvts"] = "dvts"

    def rounds(self, run: SearchRun) -> AsyncGenerator[SearchEvent]:
        """Rounds of `width` steps for every subtree that has not ended."""
        subtrees = self.n // self.width

        def choose(active: Sequence[Candidate], ended: Sequence[Candidate]) -> list[Candidate]:
            best: dict[int, Candidate] = {}
            for child in by_score([*active, *ended]):
                # The first steps are shared out in turn, so that a short budget leaves no subtree
                # without any.
                best.setdefault(_root(run, child) % subtrees, child)
            return [child for child in best.values() if child.finish_reason is None] * self.width

        return expand(
            run, choose, n=self.n, max_rounds=self.max_rounds, aggregation=self.aggregation
        )


def _root(run: SearchRun, candidate: Candidate) -> int:
    """The index of the first step that a candidate begins with."""
    while candidate.parent is not None:
        candidate = run.tree[candidate.parent]
    return candidate.index
