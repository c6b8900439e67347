"""What `auto` is told: the choice from measured points, worked out by hand, and its file."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm.errors import ModelFolderError
from prm.evaluation.reliability import Interval
from prm.manifest import ModelRef
from prm.registry import load_version
from search.curves import CurvePoint, Curves, choose
from search.records import load, path_of, save
from tests.factories import PRM


def interval(value: float, half: float = 0.02) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def point(
    selection: str, n: int, tokens: float, accuracy: float, gain: Interval | None = None
) -> CurvePoint:
    return CurvePoint(
        strategy={"type": "best_of_n", "n": n, "selection": selection},
        uses_prm=selection != "majority",
        mean_tokens=tokens,
        accuracy=interval(accuracy),
        gain=gain,
    )


def curves(*points: CurvePoint) -> Curves:
    return Curves(
        prm=ModelRef(name="p", version="1", weights_sha256="0" * 64),
        policy="writer",
        created=1,
        command="rung eval rerank",
        problems=400,
        points=points,
    )


MAJORITY = (point("majority", 4, 400, 0.50), point("majority", 16, 1600, 0.60))
SURE = point("prm", 16, 1600, 0.66, interval(0.06, 0.03))
DOUBTFUL = point("prm", 16, 1600, 0.63, interval(0.03, 0.05))
WEIGHTED = point("weighted", 16, 1600, 0.62, interval(0.02, 0.03))


def test_the_prm_decides_where_it_beats_voting_for_certain() -> None:
    choice = choose(curves(*MAJORITY, WEIGHTED, SURE), 2000)
    assert choice.settings == {"type": "best_of_n", "n": 16, "selection": "prm"}
    assert choice.reason == (
        "best_of_n n=16 selection=prm had the best accuracy within the budget, 66.0 % "
        "[64.0, 68.0] on 400 problems with 1600 tokens each, +6.0 [+3.0, +9.0] points over "
        "majority voting."
    )


def test_where_its_gain_is_within_chance_the_best_vote_is_taken() -> None:
    choice = choose(curves(*MAJORITY, WEIGHTED, DOUBTFUL), 2000)
    assert choice.settings["selection"] == "weighted"
    assert "does not beat voting here for certain" in choice.reason
    assert "+3.0 [-2.0, +8.0] points" in choice.reason
    assert choose(curves(*MAJORITY, DOUBTFUL), 2000).settings["selection"] == "majority"


def test_a_vote_among_what_the_prm_steered_to_is_no_fallback_from_the_prm() -> None:
    dvts = {"type": "dvts", "n": 16, "width": 4, "selection": "weighted"}
    steered = DOUBTFUL.model_copy(update={"strategy": dvts})
    choice = choose(curves(*MAJORITY, WEIGHTED, steered), 2000)
    assert choice.settings == WEIGHTED.strategy
    sure = SURE.model_copy(update={"strategy": dvts})
    assert choose(curves(*MAJORITY, WEIGHTED, sure), 2000).settings == dvts


def test_where_voting_is_best_it_is_taken() -> None:
    worse = point("prm", 16, 1600, 0.55, interval(-0.05))
    choice = choose(curves(*MAJORITY, worse), 2000)
    assert choice.settings == {"type": "best_of_n", "n": 16, "selection": "majority"}
    assert "nothing that the PRM decides was better" in choice.reason


def test_a_smaller_budget_buys_a_narrower_search() -> None:
    assert choose(curves(*MAJORITY, SURE), 1599).settings["n"] == 4
    cheapest = choose(curves(*MAJORITY, SURE), 100)
    assert cheapest.settings["n"] == 4
    assert "nothing measured fits 100 tokens" in cheapest.reason


def test_without_a_prm_no_point_that_needs_one_is_chosen() -> None:
    choice = choose(curves(*MAJORITY, SURE), None, has_prm=False)
    assert choice.settings["selection"] == "majority"


@pytest.mark.parametrize("has_prm", [True, False])
def test_where_nothing_was_measured_it_votes_and_says_so(has_prm: bool) -> None:
    choice = choose(None, 5120, has_prm=has_prm)
    selection = "weighted" if has_prm else "majority"
    assert choice.settings == {"type": "best_of_n", "n": 10, "selection": selection}
    assert choice.reason.startswith("nothing was measured")
    assert choose(None, 3).settings["n"] == 1
    assert choose(None, None).settings["n"] == 64


def test_costs_in_characters_are_no_costs_in_tokens() -> None:
    counted = curves(SURE).model_copy(update={"unit": "characters"})
    assert "nothing was measured" in choose(counted, 2000).reason


@given(
    st.lists(
        st.builds(
            point,
            st.sampled_from(["majority", "weighted", "prm"]),
            st.integers(1, 64),
            st.floats(1, 1e6),
            st.floats(0, 1),
            st.none() | st.builds(interval, st.floats(-1, 1)),
        ),
        min_size=1,
        max_size=8,
    ),
    st.none() | st.integers(1, 10**6),
)
def test_the_choice_was_measured_and_is_affordable_where_anything_is(
    points: list[CurvePoint], budget: int | None
) -> None:
    choice = choose(curves(*points), budget)
    chosen = [p for p in points if p.strategy == choice.settings]
    assert chosen
    if budget is not None and any(p.mean_tokens <= budget for p in points):
        assert min(p.mean_tokens for p in chosen) <= budget


def test_a_record_lies_beside_the_calibrations_and_is_refused_where_it_is_not_of_the_version(
    tiny_models: Path, tmp_path: Path
) -> None:
    models = shutil.copytree(tiny_models, tmp_path / "models")
    version = load_version(models / PRM / "1")
    assert load(Curves, version, "org/writer-7b") is None
    record = curves(*MAJORITY).model_copy(update={"prm": version.ref, "policy": "org/writer-7b"})
    path = save(version, record)
    assert path == models / PRM / "calibration" / "1" / "curves" / "org%2Fwriter-7b.json"
    assert load(Curves, version, "org/writer-7b") == record
    assert load(Curves, version, "org/writer-7b@3") == record
    content = json.loads(path.read_text())
    for damage, message in [
        ({"points": []}, "field points"),
        ({"policy": "another"}, "is for policy 'another'"),
        ({"prm": {**content["prm"], "weights_sha256": "0" * 64}}, "weights 000000000000"),
    ]:
        path.write_text(json.dumps(content | damage))
        with pytest.raises(ModelFolderError, match=message):
            load(Curves, version, "org/writer-7b")
    assert path_of(Curves, version, "x").parent == path.parent
