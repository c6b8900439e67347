"""What a search may ask for on a real server: strategies, widths, contexts, and the choice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from prm.calibration_files import save as save_calibration
from prm.evaluation.reliability import Interval
from prm.registry import Registry
from search.curves import CurvePoint, Curves
from search.records import save
from search.selection import SelectionRecord, Selector, Term
from search.strategies.beam import Beam
from search.strategies.best_of_n import BestOfN
from server.short_forms import WORDS
from tests.factories import POLICY, PRM, PROBLEM, calibration_of, publish_tiny_models
from tests.server.conftest import rung_serve

BODY: dict[str, Any] = {
    "policy": POLICY,
    "prm": PRM,
    "problem": PROBLEM,
    "sampling": {"temperature": 1.0, "max_tokens": 40, "seed": 7},
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "mcts": {"n": 2, "width": 2, "simulations": 6},
    "speculative_rejection": {"n": 4, "chunk": 8},
    "adaptive": {"n": 6, "wave": 3},
    "auto": {},
}


def search(http: httpx2.Client, **changes: Any) -> Any:
    response = http.post("/v1/search", json=BODY | changes)
    assert response.status_code == 200, response.text
    return response.json()


def refused(http: httpx2.Client, status: int, **changes: Any) -> dict[str, Any]:
    response = http.post("/v1/search", json=BODY | changes)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize("type_", STRATEGIES)
def test_it_runs_repeats_and_names_a_candidate_as_winner(http: httpx2.Client, type_: str) -> None:
    strategy = {"type": type_} | STRATEGIES[type_]
    first, second = (search(http, strategy=strategy) for _ in range(2))
    assert first["candidates"] == second["candidates"]
    assert first["text"] in [candidate["text"] for candidate in first["candidates"]]
    assert first["usage"]["generated_tokens"] > 0
    with_budget = search(http, strategy=strategy, budget={"tokens": 60})
    assert with_budget["usage"]["generated_tokens"] <= 60


@pytest.mark.parametrize(
    ("strategy", "shown"),
    [
        ({"type": "best_of_n", "n": 513}, "n 513;"),
        ({"type": "best_of_n", "n": 10**6}, "n 1000000;"),
        ({"type": "beam", "n": 1024, "width": 4}, "n 1024;"),
        ({"type": "mcts", "n": 64, "width": 9}, "n 64 and width 9, 576 candidates at a time;"),
        ({"type": "adaptive", "n": 600}, "n 600;"),
    ],
)
def test_more_candidates_than_the_server_takes_on_are_refused(
    http: httpx2.Client, strategy: dict[str, Any], shown: str
) -> None:
    error = refused(http, 400, strategy=strategy)
    assert error["param"] == "strategy.n"
    assert shown in error["message"]
    assert "at most 512" in error["message"]


@pytest.mark.parametrize(
    "strategy",
    [
        {"type": form.type}
        for form in WORDS.values()
        if form.type not in ("auto", "adaptive") and not form.settled
    ]
    + [{"type": "adaptive", "selection": "weighted"}],
)
def test_what_needs_a_prm_is_refused_without_one(
    http: httpx2.Client, strategy: dict[str, Any]
) -> None:
    error = refused(http, 400, prm=None, strategy=strategy)
    assert error["param"] == "prm"
    assert strategy["type"] in error["message"]


@pytest.mark.parametrize("type_", ["auto", "adaptive"])
def test_what_does_without_a_prm_votes(http: httpx2.Client, type_: str) -> None:
    answer = search(http, prm=None, strategy={"type": type_})
    assert answer["usage"]["scored_tokens"] == 0
    assert answer["score"] is None


@pytest.mark.parametrize(
    ("strategy", "remedy"),
    [
        ({"type": "mcts", "n": 2, "width": 8}, "lower strategy.n or strategy.width"),
        ({"type": "beam", "n": 16, "width": 8}, "lower strategy.n"),
    ],
)
def test_a_budget_below_a_token_a_candidate_names_what_makes_them_many(
    http: httpx2.Client, strategy: dict[str, Any], remedy: str
) -> None:
    error = refused(http, 400, strategy=strategy, budget={"tokens": 15})
    assert error["param"] == "budget.tokens"
    assert error["message"].endswith(f"each of 16 candidates; raise it or {remedy}")


def test_an_unknown_strategy_is_told_all_there_are(http: httpx2.Client) -> None:
    for strategy in ({"type": "magic"}, {"n": 4}):
        error = refused(http, 422, strategy=strategy)
        assert error["param"] == "strategy"
        assert all(form.type in error["message"] for form in WORDS.values())
        assert "magic" not in error["message"]


@pytest.mark.parametrize(
    ("changes", "param", "names"),
    [
        ({"stratgy": {}}, "stratgy", "answers, budget, include, messages, policy, prm, problem"),
        ({"sampling": {"top_k": 1}}, "sampling.top_k", "max_tokens, seed, stop, temperature"),
        ({"budget": {"token": 1}}, "budget.token", "calls, seconds, tokens"),
        (
            {"strategy": {"type": "beam", "widht": 1}},
            "strategy.widht",
            "aggregation, max_rounds, n, selection, type, width",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "z": 1}]},
            "messages[0].z",
            "content, role",
        ),
    ],
)
def test_an_unknown_field_is_told_the_known_ones(
    http: httpx2.Client, changes: dict[str, Any], param: str, names: str
) -> None:
    error = refused(http, 422, **changes)
    assert error["param"] == param
    assert f"no such field; there is {names}" in error["message"]


@pytest.mark.parametrize("stop", ["(.*", "[", "\\", "a|b", "$^", "+"])
def test_a_stop_string_is_no_pattern(http: httpx2.Client, stop: str) -> None:
    plain = search(http, strategy={"type": "best_of_n", "n": 8})
    sampling = BODY["sampling"] | {"stop": [stop]}
    stopped = search(http, strategy={"type": "best_of_n", "n": 8}, sampling=sampling)
    for before, after in zip(plain["candidates"], stopped["candidates"], strict=True):
        assert after["text"] == before["text"].partition(stop)[0]


def test_a_unicode_problem_has_an_answer(http: httpx2.Client) -> None:
    answer = search(http, problem="計算 Ω² → 🙂", strategy={"type": "best_of_n", "n": 2})
    assert len(answer["candidates"]) == 2


def test_auto_says_what_it_chose_and_why(http: httpx2.Client) -> None:
    answer = search(http, strategy={"type": "auto"}, budget={"tokens": 200})
    # Forty tokens a candidate: 200 pay five.
    assert answer["strategy"]["type"] == "best_of_n"
    assert (answer["strategy"]["n"], answer["strategy"]["selection"]) == (5, "weighted")
    assert answer["choice"]["strategy"] == answer["strategy"]
    assert "nothing was measured" in answer["choice"]["reason"]
    assert "choice" not in search(http, strategy={"type": "best_of_n", "n": 2})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, httpx2.Client]]:
    """A server whose PRM reads less than its policy, with curves and a calibration beside it."""
    models = publish_tiny_models(tmp_path_factory.mktemp("models"))
    manifest = models / PRM / "1" / "manifest.json"
    record = json.loads(manifest.read_text())
    record["recipe"]["context_limit"] = 100
    manifest.write_text(json.dumps(record))
    version = Registry.open(models).get(PRM)
    assert version is not None
    save_calibration(version, calibration_of(version, policy=POLICY))
    with (
        rung_serve(models, RUNG_MAX_CANDIDATES="20") as server,
        httpx2.Client(base_url=server.url, timeout=60) as http,
    ):
        yield models, http


def point(
    strategy: dict[str, Any], tokens: float, accuracy: float, gain: float | None
) -> CurvePoint:
    def around(value: float) -> Interval:
        return Interval(value=value, low=value - 0.01, high=value + 0.01)

    return CurvePoint(
        strategy=strategy,
        uses_prm=strategy.get("selection") != "majority",
        mean_tokens=tokens,
        accuracy=around(accuracy),
        gain=None if gain is None else around(gain),
    )


def write_curves(models: Path, *points: CurvePoint) -> Path:
    version = Registry.open(models).get(PRM)
    assert version is not None
    curves = Curves(
        prm=version.ref, policy=POLICY, created=1, command="by hand", problems=100, points=points
    )
    return save(version, curves)


def test_calibrated_selection_needs_what_was_fitted_for_this_pair(
    measured: tuple[Path, httpx2.Client],
) -> None:
    models, http = measured
    strategy = {"type": "best_of_n", "n": 3, "selection": "calibrated"}
    error = refused(http, 400, strategy=strategy)
    assert error["param"] == "strategy.selection"
    assert "rung eval rerank" in error["message"]
    version = Registry.open(models).get(PRM)
    assert version is not None
    terms = (Term(feature="logit_last", mean=0, scale=1, weight=1),)
    record = SelectionRecord(
        prm=version.ref,
        policy=POLICY,
        created=1,
        command="by hand",
        selector=Selector(intercept=0, l2=1, terms=terms),
        threshold=0.9,
        threshold_votes=0.8,
        wave=2,
        budget=0.25,
        problems=100,
        candidates=1600,
        accuracy={},
    )
    path = save(version, record)
    found = search(http, strategy=strategy)
    assert found["text"] in [candidate["text"] for candidate in found["candidates"]]
    waves = search(http, strategy={"type": "adaptive", "n": 3})["strategy"]
    assert (waves["selection"], waves["threshold"], waves["wave"]) == ("calibrated", 0.9, 2)
    path.write_text("{")
    waves = search(http, strategy={"type": "adaptive", "n": 3})["strategy"]
    assert (waves["selection"], waves["threshold"], waves["wave"]) == ("weighted", 0.95, 4)
    error = refused(http, 400, strategy=strategy)
    assert error["param"] == "strategy.selection"
    assert str(models) not in error["message"]


BEAM = Beam(n=4, width=2).model_dump()
WIDE = Beam(n=32, width=2).model_dump()
VOTE = BestOfN(n=3, selection="majority").model_dump()


def test_auto_takes_the_best_measured_that_the_budget_pays_and_the_server_allows(
    measured: tuple[Path, httpx2.Client],
) -> None:
    models, http = measured
    write_curves(
        models,
        point(VOTE, 100, 0.5, None),
        point(BEAM, 200, 0.6, 0.1),
        point(WIDE, 300, 0.9, 0.4),
        point({"type": "gone"}, 10, 0.99, 0.4),
        # Measured when there was no choice of who wins.
        point({k: BEAM[k] for k in BEAM if k != "selection"}, 10, 0.99, 0.4),
    )
    answer = search(http, strategy={"type": "auto"}, budget={"tokens": 500})
    assert answer["strategy"].items() >= BEAM.items()
    assert "60.0 %" in answer["choice"]["reason"]
    assert "+10.0" in answer["choice"]["reason"]
    answer = search(http, strategy={"type": "auto"}, budget={"tokens": 150})
    assert answer["strategy"].items() >= VOTE.items()


def test_auto_votes_where_the_prm_does_not_beat_voting(
    measured: tuple[Path, httpx2.Client],
) -> None:
    models, http = measured
    write_curves(models, point(VOTE, 100, 0.5, None), point(BEAM, 200, 0.505, 0.005))
    answer = search(http, strategy={"type": "auto"}, reasoning_effort="low")
    assert answer["strategy"].items() >= VOTE.items()
    assert "does not beat voting" in answer["choice"]["reason"]


def test_damaged_curves_are_none(measured: tuple[Path, httpx2.Client]) -> None:
    models, http = measured
    file = write_curves(models, point(BEAM, 200, 0.6, 0.1))
    file.write_text("{")
    answer = search(http, strategy={"type": "auto"})
    assert answer["strategy"]["selection"] == "weighted"
    assert answer["strategy"]["n"] == 20


def test_the_limit_is_the_servers_own(measured: tuple[Path, httpx2.Client]) -> None:
    _, http = measured
    error = refused(http, 400, strategy={"type": "best_of_n", "n": 21})
    assert "at most 20" in error["message"]


def test_candidates_that_may_outgrow_the_prm_are_refused_before_they_are_written(
    measured: tuple[Path, httpx2.Client],
) -> None:
    _, http = measured
    prompt = len(PROBLEM) + 3
    room = 100 - prompt
    error = refused(http, 400, sampling={"max_tokens": room + 1})
    assert error["param"] == "sampling.max_tokens"
    assert f"grow to 101 tokens, and PRM {PRM}@1 reads at most 100" in error["message"]
    assert f"lower it to {room}" in error["message"]
    assert search(http, sampling={"max_tokens": room, "seed": 1})["score"] is not None
    # Nobody reads what a vote without a PRM is taken on.
    vote = {"type": "best_of_n", "selection": "majority", "n": 2}
    search(http, prm=None, strategy=vote, sampling={"max_tokens": 200})


def test_a_problem_that_fills_the_prm_is_refused(measured: tuple[Path, httpx2.Client]) -> None:
    _, http = measured
    error = refused(http, 400, problem="x" * 120)
    assert error["param"] == "problem"
    assert f"PRM {PRM}@1" in error["message"]
    assert "at most 100" in error["message"]


def test_adaptive_weighs_by_the_fitted_probability_where_there_is_one(
    measured: tuple[Path, httpx2.Client], http: httpx2.Client
) -> None:
    _, calibrated = measured
    strategy = {"type": "adaptive", "n": 3}
    assert search(calibrated, strategy=strategy)["strategy"]["aggregation"] == "fitted"
    assert search(http, strategy=strategy)["strategy"]["aggregation"] is None
    named = search(calibrated, strategy=strategy | {"aggregation": "min"})
    assert named["strategy"]["aggregation"] == "min"
