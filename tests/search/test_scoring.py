"""A search's one call of the PRM per round: what is tokenised, what is left out, what is told."""

from collections.abc import Sequence

import pytest

from prm.aggregation import AggregationName
from prm.errors import InvalidInput
from prm.scorer import ScoredBatch
from prm.types import Trajectory
from search.accounts import Accounts
from search.budget import Budget
from search.scoring import CandidateScorer
from search.types import Candidate, Prefix
from tests.factories import user
from tests.search.fakes import ScriptedScorer

pytestmark = pytest.mark.anyio


class CountingScorer(ScriptedScorer):
    """Keeps what was asked of it: texts checked on their own, and whole calls."""

    def __init__(self, *, longest: int = 100, refusal: str | None = None) -> None:
        super().__init__(lambda step: len(step) / 100, longest=longest)
        self.asked: list[list[str]] = []
        self.checked: list[str] = []
        self._refusal = refusal

    def check(self, trajectory: Trajectory) -> None:
        self.checked.append(trajectory.response)
        super().check(trajectory)

    async def score(
        self, trajectories: Sequence[Trajectory], *, aggregation: AggregationName | None = None
    ) -> ScoredBatch:
        self.asked.append([trajectory.response for trajectory in trajectories])
        before = list(self.checked)
        try:
            if self._refusal is not None:
                raise InvalidInput(self._refusal)
            return await super().score(trajectories, aggregation=aggregation)
        finally:
            # A scorer's own look at what it scores is part of the scoring.
            self.checked = before


async def score(scorer: CountingScorer, *texts: str) -> list[float | None]:
    parts = CandidateScorer(
        user("?"), scorer, step_separator="\n", selector=None, accounts=Accounts(Budget())
    )
    candidates = [Candidate(index=i, prefix=Prefix(text=text)) for i, text in enumerate(texts)]
    found = await parts.score(candidates, None, if_unreadable="raise")
    return [candidate.score for candidate in found]


async def test_texts_that_the_prm_can_read_are_tokenised_for_their_scores_alone() -> None:
    scorer = CountingScorer()
    assert await score(scorer, "aa", "b", "aa", "") == [0.02, 0.01, 0.02, None]
    assert scorer.asked == [["aa", "b"]]
    assert scorer.checked == []


async def test_only_where_one_is_too_long_each_is_looked_at_and_it_is_left_out() -> None:
    scorer = CountingScorer(longest=3)
    assert await score(scorer, "aa", "too long", "b") == [0.02, None, 0.01]
    assert scorer.asked == [["aa", "too long", "b"], ["aa", "b"]]
    assert scorer.checked == ["aa", "too long", "b"]


async def test_where_all_are_too_long_the_caller_is_told_what_to_change() -> None:
    scorer = CountingScorer(longest=1)
    with pytest.raises(InvalidInput, match=r"too long; or lower sampling\.max_tokens"):
        await score(scorer, "aa", "bb")
    assert len(scorer.asked) == 1


async def test_a_refusal_for_another_reason_is_told_as_it_is_and_nothing_scored_twice() -> None:
    scorer = CountingScorer(refusal="step 1 got no verdict")
    with pytest.raises(InvalidInput, match=r"^step 1 got no verdict$"):
        await score(scorer, "aa", "bb")
    assert len(scorer.asked) == 1
