"""Calibrated scores over HTTP: with, without, several, and a server that refuses a damaged one."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from prm.calibration import Calibration, IsotonicMap
from prm.calibration_files import file_of, save
from prm.registry import load_version
from tests.factories import POLICY, PRM, PROBLEM, STEPS, calibration_of
from tests.server.conftest import rung_serve

BODY = {"model": PRM, "items": [{"problem": PROBLEM, "steps": list(STEPS)}]}
OTHER = "org/other-7b"


@pytest.fixture(scope="module")
def models(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two policies' calibrations; the second knows steps only."""
    root = shutil.copytree(tiny_models, tmp_path_factory.mktemp("calibrated") / "models")
    version = load_version(root / PRM / "1")
    save(version, calibration_of(version, policy=POLICY))
    save(version, calibration_of(version, policy=OTHER).model_copy(update={"response": None}))
    return root


@pytest.fixture(scope="module")
def calibrated(models: Path) -> Iterator[httpx2.Client]:
    with rung_serve(models) as server, httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client


def post(client: httpx2.Client, path: str = "/v1/prm/score", **more: Any) -> httpx2.Response:
    return client.post(path, json={**BODY, **more})


def error(response: httpx2.Response, param: str) -> str:
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    return str(response.json()["error"]["message"])


def fitted(models: Path, policy: str) -> Calibration:
    version = load_version(models / PRM / "1")
    return calibration_of(version, policy=policy)


def test_a_calibrated_score_is_the_maps_and_stands_beside_the_plain_one(
    calibrated: httpx2.Client, models: Path
) -> None:
    answer = post(calibrated, policy=POLICY, include=["calibrated"])
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["data"]
    record = fitted(models, POLICY)
    assert record.steps is not None
    assert record.response is not None
    scores = [step["score"] for step in item["steps"]]
    assert [step["calibrated"] for step in item["steps"]] == pytest.approx(
        [record.steps.probability(score) for score in scores]
    )
    assert item["aggregates"]["fitted"] == pytest.approx(record.response.probability(scores))
    assert item["score"] == item["aggregates"]["min"]
    (plain,) = post(calibrated, policy=POLICY).json()["data"]
    assert "calibrated" not in plain["steps"][0]
    assert [step["score"] for step in plain["steps"]] == pytest.approx(scores)


def test_the_fitted_aggregate_becomes_the_score_when_asked(calibrated: httpx2.Client) -> None:
    (item,) = post(calibrated, policy=POLICY, aggregation="fitted").json()["data"]
    assert item["score"] == item["aggregates"]["fitted"] != item["aggregates"]["min"]


def test_without_a_policy_several_calibrations_are_a_choice_to_make(
    calibrated: httpx2.Client,
) -> None:
    for more in ({"include": ["calibrated"]}, {"aggregation": "fitted"}):
        message = error(post(calibrated, **more), "policy")
        assert f"{OTHER}, {POLICY}" in message
    (item,) = post(calibrated).json()["data"]
    assert "fitted" not in item["aggregates"]


def test_an_unknown_policy_is_told_which_there_are(calibrated: httpx2.Client) -> None:
    message = error(post(calibrated, policy="nobody"), "policy")
    assert f"{OTHER}, {POLICY}" in message
    assert "rung eval calibrate" in message


def test_a_part_that_was_not_fitted_is_not_made_up(calibrated: httpx2.Client) -> None:
    (item,) = post(calibrated, policy=OTHER, include=["calibrated"]).json()["data"]
    assert "fitted" not in item["aggregates"]
    message = error(post(calibrated, policy=OTHER, aggregation="fitted"), "aggregation")
    assert "correct" in message


def test_the_only_calibration_needs_no_name(tiny_models: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_models, tmp_path / "models")
    version = load_version(root / PRM / "1")
    save(version, calibration_of(version, policy=OTHER))
    with rung_serve(root) as server, httpx2.Client(base_url=server.url, timeout=60) as client:
        (item,) = post(client, include=["calibrated"], aggregation="fitted").json()["data"]
        assert item["score"] == item["aggregates"]["fitted"]
        assert 0.1 <= item["steps"][0]["calibrated"] <= 0.9


def test_without_any_the_remedy_is_named(http: httpx2.Client) -> None:
    assert "rung eval calibrate" in error(post(http, include=["calibrated"]), "include")
    assert "rung eval calibrate" in error(post(http, aggregation="fitted"), "aggregation")
    assert "there is none" in error(post(http, policy="x"), "policy")


def test_the_listing_names_the_calibrations(calibrated: httpx2.Client, models: Path) -> None:
    (version,) = calibrated.get(f"/v1/prm/models/{PRM}").json()["versions"]
    assert version["weights_sha256"] == load_version(models / PRM / "1").weights_sha256
    assert {
        c["policy"]: (c["method"], c["has_fitted_aggregation"]) for c in version["calibrations"]
    } == {
        POLICY: ("isotonic", True),
        OTHER: ("isotonic", False),
    }
    assert version["calibrations"][0]["problems"] == 2


@pytest.mark.parametrize("strategy", ["best_of_n", "beam"])
def test_a_search_ranks_by_the_fit_for_its_policy(
    calibrated: httpx2.Client, models: Path, strategy: str
) -> None:
    body = {
        "policy": POLICY,
        "prm": PRM,
        "problem": PROBLEM,
        "strategy": {"type": strategy, "n": 4, "aggregation": "fitted"},
        "sampling": {"max_tokens": 12, "seed": 3},
    }
    answer = calibrated.post("/v1/search", json=body)
    assert answer.status_code == 200, answer.text
    record = fitted(models, POLICY).response
    assert record is not None
    scored = [c for c in answer.json()["candidates"] if c["score"] is not None]
    assert scored
    for candidate in scored:
        scores = [step["score"] for step in candidate["steps"]]
        assert candidate["score"] == pytest.approx(record.probability(scores), abs=1e-6)


def test_a_search_without_a_fit_says_so_before_it_writes(http: httpx2.Client) -> None:
    strategy = {"type": "best_of_n", "n": 2, "aggregation": "fitted"}
    body = {"policy": POLICY, "prm": PRM, "problem": PROBLEM, "strategy": strategy}
    assert "rung eval calibrate" in error(
        http.post("/v1/search", json=body), "strategy.aggregation"
    )


def test_a_running_server_takes_up_what_is_fitted_replaced_damaged_and_removed(
    tiny_models: Path, tmp_path: Path
) -> None:
    root, log = shutil.copytree(tiny_models, tmp_path / "models"), tmp_path / "log"
    version = load_version(root / PRM / "1")
    first = calibration_of(version, policy=OTHER)
    second = first.model_copy(
        update={"steps": IsotonicMap(scores=(0.0, 1.0), probabilities=(0.25, 0.25))}
    )
    path = file_of(version, OTHER)

    def calibrated_step(client: httpx2.Client) -> float:
        answer = post(client, include=["calibrated"])
        assert answer.status_code == 200, answer.text
        return float(answer.json()["data"][0]["steps"][0]["calibrated"])

    with (
        rung_serve(root, log=log) as server,
        httpx2.Client(base_url=server.url, timeout=60) as client,
    ):
        assert "no fitted calibration" in error(post(client, include=["calibrated"]), "include")
        save(version, first)
        assert calibrated_step(client) != 0.25
        save(version, second)
        assert calibrated_step(client) == 0.25
        path.write_text(path.read_text()[:100])
        assert calibrated_step(client) == 0.25
        assert calibrated_step(client) == 0.25
        (version_out,) = client.get(f"/v1/prm/models/{PRM}").json()["versions"]
        assert [c["policy"] for c in version_out["calibrations"]] == [OTHER]
        path.unlink()
        assert "no fitted calibration" in error(post(client, include=["calibrated"]), "include")
    errors = [line for line in log.read_text().splitlines() if "not valid JSON" in line]
    assert len(errors) == 1
    assert str(path) in errors[0]
    assert "the one before stays" in errors[0]


def test_many_requests_at_once_see_one_calibration_or_the_other(
    tiny_models: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(tiny_models, tmp_path / "models")
    version = load_version(root / PRM / "1")
    records = [
        calibration_of(version, policy=OTHER).model_copy(
            update={"steps": IsotonicMap(scores=(0.0, 1.0), probabilities=(p, p))}
        )
        for p in (0.25, 0.75)
    ]
    save(version, records[0])
    with rung_serve(root) as server:

        def ask(_: int) -> set[float]:
            with httpx2.Client(base_url=server.url, timeout=60) as client:
                answers = [post(client, include=["calibrated"]) for _ in range(20)]
            assert {answer.status_code for answer in answers} == {200}
            items = [answer.json()["data"][0] for answer in answers]
            # Within an answer all steps are of the same one.
            assert all(len({step["calibrated"] for step in i["steps"]}) == 1 for i in items)
            return {step["calibrated"] for i in items for step in i["steps"]}

        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, number) for number in range(8)]
            written = 0
            while not all(done.done() for done in asked):
                written += 1
                save(version, records[written % 2])
        assert written > 1
        assert set().union(*[done.result() for done in asked]) == {0.25, 0.75}


def test_a_damaged_calibration_stops_the_start_by_its_name(models: Path, tmp_path: Path) -> None:
    root = shutil.copytree(models, tmp_path / "models")
    path = root / PRM / "calibration" / "1" / f"{POLICY}.json"
    record = json.loads(path.read_text())
    record["prm"]["weights_sha256"] = "f" * 64
    path.write_text(json.dumps(record))
    done = subprocess.run(
        [sys.executable, "-m", "server", "serve", "--port=0", f"--models={root}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert str(path) in done.stderr
    assert "was fitted to" in done.stderr
