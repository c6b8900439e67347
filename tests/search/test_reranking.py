"""Recorded candidates: the shared pool's published figures, and the arithmetic by hand."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.errors import InvalidInput
from search.reranking.fits import cross_fit, fit_selector, probabilities
from search.reranking.measure import measure, steps_of
from search.reranking.pool import Floats, Pool, PoolProblem, read_pool
from search.reranking.rules import RULES, Rule, orders_of, right_by, vote, weights_of
from search.reranking.waves import THRESHOLDS, dearest, replay, second_overtakes
from search.selection import pick
from search.stopping import beats_half, is_decided

SHARED = Path(__file__).parents[3] / "shared/data/bestofn/pool_math500/pool_rows_000_099.jsonl.gz"
needs_pool = pytest.mark.skipif(not SHARED.exists(), reason=f"no shared pool at {SHARED}")


def problem(
    candidates: list[tuple[int, float, bool]], *, text: str = "p", cost: float = 1.0
) -> PoolProblem:
    return PoolProblem(
        text=text,
        scores=tuple((score,) for _, score, _ in candidates),
        groups=np.array([group for group, _, _ in candidates], dtype=np.int64),
        is_right=np.array([right for _, _, right in candidates], dtype=bool),
        costs=np.full(len(candidates), cost),
    )


def made_up(count: int = 30, *, seed: int = 0) -> tuple[PoolProblem, ...]:
    """Problems with 8 candidates, whose last scores tell right from wrong fairly well."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        right = rng.random(8) < rng.choice([0.3, 0.7])
        scores = np.clip(rng.normal(np.where(right, 0.75, 0.4), 0.15), 0, 1)
        groups = np.where(right, 0, rng.integers(1, 4, size=8))
        rows = list(zip(groups.tolist(), scores.tolist(), right.tolist(), strict=True))
        found.append(problem(rows, text=f"problem {number}"))
    return tuple(found)


@needs_pool
def test_the_shared_pools_published_figures_come_out() -> None:
    pool = read_pool(SHARED)
    assert len(pool.problems) == 100
    assert sum(map(len, pool.problems)) == 2559
    assert pool.unit == "characters"

    def accuracy(rule: Rule) -> float:
        return float(
            np.mean(
                [
                    right_by(p, rule, weights_of(p, rule, np.zeros(len(p))), np.arange(len(p)))[-1]
                    for p in pool.problems
                ]
            )
        )

    published = {
        Rule("best", "last"): 0.59,
        Rule("best", "min"): 0.59,
        Rule("best", "mean"): 0.60,
        Rule("best", "product"): 0.59,
        Rule("majority"): 0.63,
        Rule("weighted", "last"): 0.64,
        Rule("oracle"): 0.85,
    }
    assert {rule: accuracy(rule) for rule in published} == pytest.approx(published, abs=1e-12)
    assert round(float(np.mean([p.is_right.mean() for p in pool.problems])), 3) == 0.422


@pytest.mark.slow
@needs_pool
def test_on_the_shared_pool_the_targets_are_met_by_cross_validation() -> None:
    found = measure(read_pool(SHARED), orders=0)
    assert found.calibrated_minus_weighted_by_last.value >= 0.01
    (waves,) = [a for a in found.adaptive if a.label == "calibrated"]
    assert waves.cost.value <= 0.25
    assert waves.gain.value >= 0


CANDIDATES = st.lists(
    st.tuples(st.integers(-1, 3), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.booleans()),
    min_size=1,
    max_size=12,
)


@given(CANDIDATES, st.integers(0, 99))
def test_every_prefix_has_the_winner_that_selection_picks(
    candidates: list[tuple[int, float, bool]], seed: int
) -> None:
    one = problem(candidates)
    weights = np.array([score for _, score, _ in candidates])
    (order,) = orders_of(one, 1, (seed,))
    found = vote(one, weights, order).is_right
    for k in range(1, len(order) + 1):
        prefix = order[:k]
        groups = [None if g < 0 else int(g) for g in one.groups[prefix]]
        winner = pick(groups, weights[prefix].tolist())
        assert winner is not None
        assert found[k - 1] == one.is_right[prefix[winner]]


@given(CANDIDATES, st.integers(0, 99))
def test_oracle_is_never_worse_and_the_first_never_changes(
    candidates: list[tuple[int, float, bool]], seed: int
) -> None:
    one = problem(candidates)
    (order,) = orders_of(one, 1, (seed,))
    calibrated = np.array([score for _, score, _ in candidates])
    right = {rule: right_by(one, rule, weights_of(one, rule, calibrated), order) for rule in RULES}
    for rule in RULES:
        assert np.all(right[Rule("oracle")] >= right[rule])
    assert len(set(right[Rule("first")].tolist())) == 1


@given(st.lists(st.tuples(st.floats(0, 200), st.floats(0, 200)), min_size=1, max_size=20))
def test_the_array_form_of_the_posterior_is_the_same(pairs: list[tuple[float, float]]) -> None:
    first = np.array([max(pair) for pair in pairs])
    second = np.array([min(pair) for pair in pairs])
    exact = [1 - beats_half(1 + a, 1 + b) for a, b in zip(first, second, strict=True)]
    assert second_overtakes(first, second) == pytest.approx(exact, abs=1e-9)


@settings(max_examples=30)
@given(CANDIDATES, st.integers(1, 4), st.integers(0, len(THRESHOLDS) - 1))
def test_a_replay_stops_where_the_live_rule_would(
    candidates: list[tuple[int, float, bool]], wave: int, place: int
) -> None:
    one = problem(candidates)
    weights = np.array([score for _, score, _ in candidates])
    groups = [None if g < 0 else int(g) for g in one.groups]
    threshold = float(THRESHOLDS[place])
    stopped = len(groups)
    for k in range(wave, len(groups), wave):
        if is_decided(groups[:k], weights[:k].tolist(), threshold=threshold):
            stopped = k
            break
    found = replay(one, weights, [np.arange(len(groups))], wave=wave)
    assert found.candidates[place] == stopped
    assert found.costs[place] == pytest.approx(stopped / len(groups))


def test_the_threshold_is_the_highest_that_the_budget_pays() -> None:
    # One vote has a doubt of ¼, two alike ⅛ ≤ (1 − θ)·√2 from θ ≤ 0.9116, three 1/16.
    one = problem([(0, 1.0, True)] * 4)
    stops = replay(one, np.ones(4), [np.arange(4)], wave=1)
    assert THRESHOLDS[dearest([stops], 0.25)] == 0.75
    assert THRESHOLDS[dearest([stops], 0.5)] == 0.91
    assert dearest([stops], 0.1) == 0


def test_a_problems_own_labels_do_not_reach_its_probabilities() -> None:
    problems = made_up()
    before = cross_fit(problems, folds=5, seed=0)
    turned = list(problems)
    turned[3] = PoolProblem(
        text=problems[3].text,
        scores=problems[3].scores,
        groups=problems[3].groups,
        is_right=~problems[3].is_right,
        costs=problems[3].costs,
    )
    after = cross_fit(turned, folds=5, seed=0)
    assert np.array_equal(before[3], after[3])
    assert any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_fit_tells_right_from_wrong_and_agrees_with_itself_alone() -> None:
    problems = made_up()
    selector = fit_selector(problems)
    found: list[Floats] = probabilities(selector, problems)
    for one, own in zip(problems, found, strict=True):
        assert own == pytest.approx([selector.probability(s) for s in one.scores], abs=1e-12)
    everything, labels = np.concatenate(found), np.concatenate([p.is_right for p in problems])
    assert everything[labels].mean() > everything[~labels].mean() + 0.3
    assert everything.mean() == pytest.approx(labels.mean(), abs=1e-6)


def test_the_same_seed_gives_the_same_figures_and_the_progress_is_told() -> None:
    pool = Pool(problems=made_up(20), unit="candidates")
    told = []
    first = measure(pool, folds=4, orders=3, report=lambda: told.append(1))
    assert len(told) == steps_of(pool, 4)
    assert measure(pool, folds=4, orders=3) == first
    labels = {curve.label for curve in first.curves}
    assert {"pass@1", "majority", "best by min", "weighted by last", "calibrated"} <= labels
    assert [point.candidates for point in first.curves[0].points] == [1, 2, 4, 8]


CANDIDATE = {"step_scores": [0.5], "extracted": "1", "correct": True, "tokens": 7}
LINE = {"problem": "one", "candidates": [CANDIDATE]}
OTHER = LINE | {"problem": "two"}


def test_plain_and_packed_files_and_token_counts_are_read(tmp_path: Path) -> None:
    text = json.dumps(LINE) + "\n\n" + json.dumps(OTHER) + "\n"
    (tmp_path / "pool.jsonl").write_text(text)
    with gzip.open(tmp_path / "pool.jsonl.gz", "wt") as file:
        file.write(text)
    plain, packed = (read_pool(tmp_path / name) for name in ("pool.jsonl", "pool.jsonl.gz"))
    assert plain.unit == packed.unit == "tokens"
    assert plain.problems[0].costs.tolist() == packed.problems[0].costs.tolist() == [7.0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{", json.dumps(OTHER)], "line 1: not JSON"),
        ([json.dumps(LINE)], "1 problems; cross-validation takes at least two"),
        ([json.dumps(LINE)] * 2, "two lines are about the problem 'one'"),
        ([json.dumps(LINE | {"candidates": []}), json.dumps(OTHER)], "line 1: candidates: List"),
        (
            [json.dumps({"problem": "x", "candidates": [{"step_scores": [1.5]}]})],
            "line 1: candidates.0.step_scores.0: Input should be less than or equal to 1",
        ),
        (
            [json.dumps({"problem": "x", "candidates": [CANDIDATE | {"correct": 1}]})],
            "candidates.0.correct: Input should be a valid boolean",
        ),
    ],
)
def test_a_bad_file_names_line_and_field(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InvalidInput, match=message):
        read_pool(path)


def test_labels_that_are_all_alike_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(OTHER))
    with pytest.raises(InvalidInput, match="give more problems"):
        measure(read_pool(path))
