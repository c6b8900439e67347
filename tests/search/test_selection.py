"""Selection: winners worked out by hand, and the record beside a version."""

import shutil
from math import exp, log
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm.evaluation.reliability import Interval
from prm.registry import load_version
from search.records import load, save
from search.selection import SelectionRecord, Selector, Term, pick
from tests.factories import PRM

# σ(2·(log product + 1)): worked out below.
SELECTOR = Selector(
    intercept=0.0,
    terms=(Term(feature="log_product", mean=-1.0, scale=0.5, weight=1.0),),
    l2=0.01,
)


def test_the_answer_with_most_probability_wins_and_its_best_candidate_speaks_for_it() -> None:
    # Probabilities: 0.9 → .8568, 0.5·0.5 → .3161 ×3. Votes: .8568 against .9482.
    scores = [[0.9], [0.5, 0.5], [0.5, 0.5], [0.51, 0.5]]
    assert SELECTOR.probability([0.9]) == pytest.approx(1 / (1 + exp(-2 * (log(0.9) + 1))))
    assert SELECTOR.select(scores, [0, 1, 1, 1]) == 3
    assert SELECTOR.select(scores[:3], [0, 1, 1]) == 0


def test_candidates_without_an_answer_do_not_vote_but_win_where_there_is_no_other() -> None:
    assert SELECTOR.select([[0.9], [0.2]], [None, 0]) == 1
    assert SELECTOR.select([[0.2], [0.9]], [None, None]) == 1
    assert SELECTOR.select([], []) is None


def test_a_candidate_that_the_prm_could_not_read_is_nobodys_vote() -> None:
    assert SELECTOR.probability([]) == 0.0
    assert SELECTOR.select([[], [], [0.3]], [0, 0, 1]) == 2


def test_scores_of_zero_and_one_are_finite() -> None:
    everything = Selector(
        intercept=0.0,
        terms=tuple(
            Term(feature=name, mean=0.0, scale=1.0, weight=1.0)
            for name in ("logit_min", "logit_last", "log_product")
        ),
        l2=1.0,
    )
    assert 0 < everything.probability([0.0, 0.0]) < 1e-4
    assert 1 > everything.probability([1.0, 1.0]) > 0.999


@given(st.lists(st.tuples(st.none() | st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=20))
def test_the_winner_is_a_candidate_of_the_leading_answer(
    candidates: list[tuple[int | None, float]],
) -> None:
    groups, votes = [c[0] for c in candidates], [c[1] for c in candidates]
    winner = pick(groups, votes)
    assert winner is not None
    if any(group is not None for group in groups):
        group = groups[winner]
        assert group is not None
        alike = [vote for other, vote in candidates if other == group]
        assert votes[winner] == max(alike)
        others = {other for other in groups if other is not None}
        totals = [sum(v for g, v in candidates if g == other) for other in others]
        assert sum(alike) == pytest.approx(max(totals))


def test_a_selector_comes_back_from_beside_its_version(tiny_models: Path, tmp_path: Path) -> None:
    models = shutil.copytree(tiny_models, tmp_path / "models")
    version = load_version(models / PRM / "1")
    half = Interval(value=0.5, low=0.4, high=0.6)
    record = SelectionRecord(
        prm=version.ref,
        policy="writer",
        created=1,
        command="rung eval rerank",
        selector=SELECTOR,
        threshold=0.85,
        threshold_votes=0.87,
        budget=0.24,
        problems=100,
        candidates=2559,
        accuracy={"majority": half, "weighted": half, "calibrated": half},
    )
    assert save(version, record).parent.name == "selection"
    assert load(SelectionRecord, version, "writer") == record
