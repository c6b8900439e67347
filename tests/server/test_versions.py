"""Versions change under a server's callers: swapped, rolled back, shared, refused; never mixed."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from prm.registry import Verdict, promote, write_verdict
from tests.factories import POLICY, PRM, PROBLEM, STEPS, publish_tiny_prm
from tests.server.conftest import RunningServer, poll, rung_serve

VERSIONS = ("1", "2", "3")


@pytest.fixture(scope="module")
def root(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("versions") / "models"
    shutil.copytree(tiny_models, root)
    for version in VERSIONS[1:]:
        publish_tiny_prm(root, version, seed=int(version) + 10, live=False)
    return root


@pytest.fixture(scope="module")
def swapping(root: Path) -> Iterator[RunningServer]:
    with rung_serve(
        root,
        RUNG_RELOAD_POLL_S="0.05",
        RUNG_CANARY_DRIFT="0.01",
        RUNG_CANARY_REQUESTS="80",
    ) as running:
        yield running


@pytest.fixture
def http(swapping: RunningServer, root: Path) -> Iterator[httpx2.Client]:
    """A client; version 1 is live, alone, before and after."""
    with httpx2.Client(base_url=swapping.url, timeout=60) as client:
        yield client
        client.post(f"/v1/prm/models/{PRM}/canary", json={"version": None})
        client.post(f"/v1/prm/models/{PRM}/promote", json={"version": "1"})


def score(http: httpx2.Client, model: str = PRM, **headers: str) -> dict[str, Any]:
    body = {"model": model, "items": [{"problem": PROBLEM, "steps": STEPS}]}
    answer = http.post("/v1/prm/score", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def raw(answer: dict[str, Any]) -> list[float]:
    return [step["score"] for step in answer["data"][0]["steps"]]


def change(http: httpx2.Client, what: str, **body: Any) -> httpx2.Response:
    return http.post(f"/v1/prm/models/{PRM}/{what}", json=body)


@pytest.fixture(scope="module")
def offline(root: Path) -> dict[str, list[float]]:
    """What each version says, by a server of its own: nothing was ever swapped there."""
    said = {}
    for version in VERSIONS:
        alone = shutil.copytree(root, root.parent / f"only-{version}")
        (alone / PRM / "live.json").write_text(json.dumps({"live": version}))
        with (
            rung_serve(alone) as running,
            httpx2.Client(base_url=running.url, timeout=60) as client,
        ):
            said[version] = raw(score(client))
    return said


def test_a_promoted_version_answers_at_once_with_its_own_scores(
    http: httpx2.Client, offline: dict[str, list[float]]
) -> None:
    for version in ("2", "3", "1"):
        told = change(http, "promote", version=version)
        assert told.status_code == 200, told.text
        assert told.json()["live"] == version
        answer = score(http)
        assert answer["model_version"] == version
        assert raw(answer) == pytest.approx(offline[version], abs=1e-4)
    assert len({tuple(scores) for scores in offline.values()}) == 3


def test_a_pointer_that_another_process_wrote_is_seen(http: httpx2.Client, root: Path) -> None:
    promote(root, PRM, "2")
    took = poll(lambda: score(http)["model_version"] == "2", seconds=10, what="the swap")
    assert took < 5


def test_rollback_goes_back_and_says_when_it_cannot(http: httpx2.Client, root: Path) -> None:
    (root / PRM / "live.json").write_text(json.dumps({"live": "1"}))
    assert change(http, "promote", version="2").json()["previous"] == "1"
    assert change(http, "rollback").json()["live"] == "1"
    answer = change(http, "rollback")
    assert answer.status_code == 409
    assert "no previous version" in answer.json()["error"]["message"]
    assert score(http)["model_version"] == "1"


def test_a_canary_answers_the_same_callers_every_time(http: httpx2.Client) -> None:
    told = change(http, "canary", version="2", fraction=0.3).json()
    assert (told["canary"]["version"], told["canary"]["fraction"]) == ("2", 0.3)
    assert {v["id"]: v["state"] for v in told["versions"]} == {
        "1": "live",
        "2": "canary",
        "3": "available",
    }
    callers = [f"user-{number}" for number in range(60)]
    first = [score(http, **{"X-Rung-Caller": caller})["model_version"] for caller in callers]
    again = [score(http, **{"X-Rung-Caller": caller})["model_version"] for caller in callers]
    assert first == again
    assert 6 <= first.count("2") <= 32
    assert score(http, f"{PRM}@2")["model_version"] == "2"
    change(http, "canary", version=None)
    assert {score(http, **{"X-Rung-Caller": c})["model_version"] for c in callers} == {"1"}


def test_a_shadow_scores_beside_and_nobody_sees_it(http: httpx2.Client) -> None:
    assert change(http, "shadow", version="3", fraction=1.0).status_code == 200
    for _ in range(5):
        assert score(http)["model_version"] == "1"

    def seen() -> dict[str, Any]:
        return dict(http.get(f"/v1/prm/models/{PRM}").json()["shadow"]["seen"])

    poll(lambda: seen()["items"] == 5, seconds=10, what="the shadow's scores")
    ours, theirs = score(http), score(http, f"{PRM}@3")
    apart = theirs["data"][0]["score"] - ours["data"][0]["score"]
    assert seen()["difference"] == pytest.approx(apart, abs=1e-4)
    assert seen()["distance"] == pytest.approx(abs(apart), abs=1e-4)
    assert change(http, "shadow", version=None).json()["shadow"] is None


def test_a_canary_whose_scores_drift_is_ended_and_rejected(
    http: httpx2.Client, root: Path, offline: dict[str, list[float]]
) -> None:
    # The tiny models' scores are far apart, and this server's limit is narrow.
    assert abs(min(offline["2"]) - min(offline["1"])) > 0.02
    try:
        change(http, "canary", version="2", fraction=0.5)
        for number in range(240):
            score(http, **{"X-Rung-Caller": f"user-{number}"})
        told: dict[str, Any] = {}

        def is_ended() -> bool:
            told.update(http.get(f"/v1/prm/models/{PRM}").json())
            return told["canary"] is None

        poll(is_ended, seconds=10, what="the end of the canary")
        (second,) = (version for version in told["versions"] if version["id"] == "2")
        assert second["state"] == "rejected"
        assert "as a canary its mean score was" in second["reason"]
        assert change(http, "promote", version="2").status_code == 409
        assert score(http)["model_version"] == "1"
    finally:
        (root / PRM / "gate" / "2.json").unlink(missing_ok=True)


BAD: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "unknown version": ("promote", {"version": "99"}, 404, "it has 1, 2, 3"),
    "a path": ("promote", {"version": "../1"}, 404, "no version"),
    "no version": ("promote", {}, 422, "version"),
    "a field too many": ("promote", {"version": "2", "force": True}, 422, "force"),
    "all callers": ("canary", {"version": "2", "fraction": 2}, 400, "above 0 and below 1"),
    "the live one": ("canary", {"version": "1", "fraction": 0.5}, 409, "live already"),
    "an unknown canary": ("canary", {"version": "x", "fraction": 0.5}, 404, "no version"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_change_that_makes_no_sense_changes_nothing(http: httpx2.Client, case: str) -> None:
    what, body, status, words = BAD[case]
    answer = change(http, what, **body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]
    assert score(http)["model_version"] == "1"


def test_an_unknown_name_is_404(http: httpx2.Client) -> None:
    for name in ("nope", "%2e%2e", POLICY + "x"):
        answer = http.post(f"/v1/prm/models/{name}/promote", json={"version": "1"})
        assert answer.status_code == 404


def test_a_rejected_version_keeps_its_reason_and_is_not_promoted(
    http: httpx2.Client, root: Path
) -> None:
    write_verdict(root, PRM, Verdict(version="3", passed=False, reason="first-error F1 fell"))
    try:
        answer = change(http, "promote", version="3")
        assert answer.status_code == 409
        assert "first-error F1 fell" in answer.json()["error"]["message"]
        listed = http.get(f"/v1/prm/models/{PRM}").json()["versions"]
        (third,) = (version for version in listed if version["id"] == "3")
        assert (third["state"], third["reason"]) == ("rejected", "first-error F1 fell")
    finally:
        (root / PRM / "gate" / "3.json").unlink()


def test_a_version_that_cannot_be_served_leaves_the_live_one(
    http: httpx2.Client, root: Path
) -> None:
    broken = root / PRM / "4"
    shutil.copytree(root / PRM / "2", broken)
    manifest = json.loads((broken / "manifest.json").read_text())
    manifest["version"] = "4"
    manifest["golden"][0]["raw"][0] += 1.0
    (broken / "manifest.json").write_text(json.dumps(manifest))
    try:
        answer = change(http, "promote", version="4")
        assert answer.status_code == 409, answer.text
        assert "cannot be served here" in answer.json()["error"]["message"]
        assert str(root) not in answer.text
        # Also where another process points at it: told, and the one that serves goes on.
        promote(root, PRM, "4")

        def is_told() -> bool:
            return "rung_versions_failed 1.0" in http.get("/metrics").text

        poll(is_told, seconds=10, what="the failure")
        assert score(http)["model_version"] == "1"
        promote(root, PRM, "1")
        poll(lambda: not is_told(), seconds=10, what="the end of the failure")
    finally:
        shutil.rmtree(broken)


def test_nothing_fails_and_nothing_is_mixed_while_versions_are_swapped(
    http: httpx2.Client, offline: dict[str, list[float]]
) -> None:
    stop, wrong = threading.Event(), []
    counts: dict[str, int] = dict.fromkeys(VERSIONS, 0)

    def ask() -> None:
        with httpx2.Client(base_url=http.base_url, timeout=60) as client:
            while not stop.is_set():
                answer = score(client)
                version = answer["model_version"]
                counts[version] += 1
                if raw(answer) != pytest.approx(offline[version], abs=1e-4):
                    wrong.append(version)

    def search() -> None:
        body = {
            "policy": POLICY,
            "prm": PRM,
            "problem": PROBLEM,
            "strategy": {"type": "beam", "n": 4, "width": 2, "max_rounds": 5},
            "sampling": {"max_tokens": 40, "seed": 1},
        }
        with httpx2.Client(base_url=http.base_url, timeout=60) as client:
            while not stop.is_set():
                answer = client.post("/v1/search", json=body)
                if answer.status_code != 200:
                    wrong.append(answer.text)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    threads.append(threading.Thread(target=search))
    for thread in threads:
        thread.start()
    for number in range(9):
        assert change(http, "promote", version=VERSIONS[number % 3]).status_code == 200
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(counts.values())


def test_a_version_that_nobody_needs_any_more_leaves_the_engine(http: httpx2.Client) -> None:
    change(http, "promote", version="2")
    change(http, "promote", version="1")
    answer = http.post(
        "/v1/prm/score",
        json={"model": f"{PRM}@2", "items": [{"problem": PROBLEM, "steps": STEPS}]},
    )
    assert answer.status_code == 404
    metrics = http.get("/metrics").text
    assert f'rung_served_version{{model="{PRM}",state="live",version="1"}} 1.0' in metrics
