"""Who wins of those that a search in steps ended with: worked out by hand for every selection."""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.selection import StepSelection
from search.strategies.base import SteeredSettings
from search.strategies.dvts import Dvts
from search.strategies.selecting import rank_ended
from search.types import Candidate
from tests.search.fakes import ScriptedGenerator, ScriptedScorer
from tests.search.runs import finish, new_run
from tests.search.test_invariants import STRATEGIES, random_tree, small
from tests.search.test_invariants import new_run as random_run

pytestmark = pytest.mark.anyio

SELECTIONS: tuple[StepSelection, ...] = get_args(StepSelection)
STEERED = [kind for kind in STRATEGIES if issubclass(kind, SteeredSettings)]
every_steered = pytest.mark.parametrize(
    "kind", STEERED, ids=[kind.model_fields["type"].default for kind in STEERED]
)

# One 1 of .9; two 2s, 1.1 together; three 3s, .8 together. The third candidate's .8 of probability
# is more than what either other answer adds up to.
ROWS = [
    ("1", 0.9, 0.3),
    ("2", 0.6, 0.1),
    ("2", 0.5, 0.8),
    ("3", 0.3, 0.2),
    ("3", 0.3, 0.2),
    ("3", 0.2, 0.2),
]
ENDED = [
    Candidate(
        index=index, answer=answer, score=score, probability=probability, finish_reason="stop"
    )
    for index, (answer, score, probability) in enumerate(ROWS)
]
# Cut off by the budget, and given up: better scores, and no say.
UNFINISHED = [
    Candidate(index=6, answer="4", score=0.99, probability=0.99, finish_reason="budget"),
    Candidate(index=7, answer="4", score=1.0, probability=1.0, finish_reason="pruned"),
    Candidate(index=8, finish_reason="budget"),
]


def test_what_steers_and_then_chooses_is_all_but_the_plain_samplers() -> None:
    assert {kind.model_fields["type"].default for kind in STEERED} == {
        "beam", "dvts", "lookahead", "rebase", "mcts", "particle_filter", "speculative_rejection"
    }  # fmt: skip


@every_steered
@pytest.mark.parametrize(
    ("selection", "winner", "order"),
    [
        ("prm", 0, [0, 1, 2, 3, 4, 5]),
        # The best of each answer first, the answers by 1.1, .9 and .8.
        ("weighted", 1, [1, 0, 3, 2, 4, 5]),
        ("majority", 3, [3, 1, 0, 2, 4, 5]),
        # .9 of probability for 2, .6 for 3, .3 for 1; within 2 the third candidate is likelier.
        ("calibrated", 2, [2, 3, 0, 4, 5, 1]),
    ],
)
def test_each_selection_has_its_winner_and_half_a_text_has_no_vote(
    kind: type[SteeredSettings], selection: StepSelection, winner: int, order: list[int]
) -> None:
    ranking = kind(selection=selection).rank([*UNFINISHED, *ENDED])
    assert ranking[0].index == winner
    assert [candidate.index for candidate in ranking] == [*order, 7, 6, 8]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_with_nothing_ended_the_best_score_is_all_there_is(selection: StepSelection) -> None:
    assert [c.index for c in rank_ended(selection, UNFINISHED)] == [7, 6, 8]
    assert rank_ended(selection, []) == []


@pytest.mark.parametrize("selection", SELECTIONS)
def test_with_no_answer_among_the_ended_the_best_of_them_wins(selection: StepSelection) -> None:
    silent = [replace(candidate, answer=None) for candidate in ENDED]
    assert rank_ended(selection, silent)[0].index == (2 if selection == "calibrated" else 0)


async def test_dvts_by_vote_takes_what_its_subtrees_agree_upon() -> None:
    # Two subtrees of two: they end in 7, 7 and 9 with .5, .4 and .8 (the fourth text is poor).
    scores = {"So. Answer: 7": 0.5, "Answer: 9": 0.8, "Thus. Answer: 7": 0.4, "Answer: 0": 0.1}
    winners = {}
    for selection in ("prm", "weighted", "majority"):
        generator = ScriptedGenerator(lambda _, nth: (list(scores)[nth], "eos"))
        strategy = Dvts(n=4, width=2, selection=selection)
        _, result = await finish(strategy, new_run(generator, ScriptedScorer(scores.__getitem__)))
        assert result.winner is not None
        winners[selection] = (result.winner.answer, result.winner.score)
    assert winners == {"prm": ("9", 0.8), "weighted": ("7", 0.5), "majority": ("7", 0.5)}


@every_steered
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
async def test_a_selection_has_no_say_in_what_is_written_and_its_winner_leads_its_vote(
    kind: type[SteeredSettings], seed: int
) -> None:
    found = {}
    for selection in SELECTIONS:
        run, _ = random_run(random_tree(seed), seed)
        strategy = small(kind).model_copy(update={"selection": selection})
        events, result = await finish(strategy, run)
        found[selection] = (events, result.candidates, result.usage.generated_tokens, result.votes)
        ended = [c for c in result.candidates if c.finish_reason in ("stop", "length")]
        votes: dict[str, list[float]] = {}
        for candidate in ended:
            if candidate.group is not None:
                votes.setdefault(candidate.group, []).append(candidate.score or 0.0)
        winner = result.winner
        assert winner is not None
        if not ended:
            continue
        assert winner in ended
        if selection == "prm" or not votes:
            assert (winner.score or 0.0) == max(c.score or 0.0 for c in ended)
        elif selection in ("weighted", "majority"):
            worth: Callable[[list[float]], float] = len if selection == "majority" else sum
            most = max(worth(members) for members in votes.values())
            assert winner.group is not None
            assert worth(votes[winner.group]) == pytest.approx(most)
            assert winner.score == max(votes[winner.group])
    assert all(each == found["prm"] for each in found.values())
