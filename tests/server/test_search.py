"""`POST /v1/search`: the contract on a real server, whole and streamed."""

import json
from typing import Any

import httpx2
import pytest

from tests.factories import POLICY, PRM, PROBLEM
from tests.server.conftest import poll, without_clock

BODY: dict[str, Any] = {
    "policy": POLICY,
    "prm": PRM,
    "problem": PROBLEM,
    "sampling": {"temperature": 1.0, "max_tokens": 40, "seed": 7},
}
BEST = {"type": "best_of_n", "n": 6}
BEAM = {"type": "beam", "selection": "prm", "n": 4, "width": 2, "max_rounds": 5}


def search(http: httpx2.Client, **changes: Any) -> Any:
    response = http.post("/v1/search", json=BODY | changes)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("strategy", [BEST, BEAM])
def test_the_answer_has_the_contracts_fields(http: httpx2.Client, strategy: dict[str, Any]) -> None:
    answer = search(http, strategy=strategy, include=["candidates", "tree"])
    assert (answer["object"], answer["policy"], answer["prm"]) == ("search", POLICY, PRM)
    assert (answer["policy_version"], answer["prm_version"]) == ("1", "1")
    assert answer["strategy"].items() >= strategy.items()
    candidates = answer["candidates"]
    best = max(candidates, key=lambda c: c["score"] if c["score"] is not None else -1)
    assert answer["score"] == best["score"]
    assert answer["text"] in [c["text"] for c in candidates]
    usage = answer["usage"]
    nodes = {node["index"]: node for node in answer["tree"]}
    assert len(nodes) >= len(candidates)
    written = sum(
        node["tokens"] - (nodes[node["parent"]]["tokens"] if node["parent"] is not None else 0)
        for node in nodes.values()
    )
    assert usage["generated_tokens"] == written
    (winner_tokens,) = {c["tokens"] for c in candidates if c["text"] == answer["text"]}
    assert usage["discarded_tokens"] == written - winner_tokens
    assert usage["prompt_tokens"] == len(PROBLEM) + 3
    assert answer["stopped_by"] in ("finished", "max_rounds")


@pytest.mark.parametrize("strategy", [BEST, BEAM])
def test_the_same_seed_gives_the_same_result(http: httpx2.Client, strategy: dict[str, Any]) -> None:
    first, second = (search(http, strategy=strategy) for _ in range(2))
    assert without_clock(first) == without_clock(second)
    other = search(http, strategy=strategy, sampling=BODY["sampling"] | {"seed": 8})
    assert other["candidates"] != first["candidates"]


def test_a_drawn_seed_is_named_and_repeats_the_search(http: httpx2.Client) -> None:
    first = search(http, sampling={"max_tokens": 20})
    again = search(http, sampling={"max_tokens": 20, "seed": first["sampling"]["seed"]})
    assert without_clock(first) == without_clock(again)


def test_votes_need_no_prm(http: httpx2.Client) -> None:
    answer = search(http, prm=None, strategy=BEST | {"selection": "majority"})
    assert answer["prm"] is answer["prm_version"] is answer["score"] is None
    assert answer["usage"]["scored_tokens"] == 0


def test_first_is_the_first_candidate(http: httpx2.Client) -> None:
    answer = search(http, strategy=BEST | {"selection": "first"})
    assert answer["text"] == answer["candidates"][0]["text"]


def test_a_token_budget_is_kept(http: httpx2.Client) -> None:
    answer = search(http, strategy=BEST, budget={"tokens": 60})
    assert answer["usage"]["generated_tokens"] <= 60
    assert answer["stopped_by"] == "budget.tokens"
    answer = search(http, strategy=BEAM, budget={"tokens": 50})
    assert answer["usage"]["generated_tokens"] <= 50


def test_a_time_budget_returns_what_is_there(http: httpx2.Client) -> None:
    answer = search(
        http,
        strategy={"type": "best_of_n", "n": 300},
        sampling={"max_tokens": 200, "seed": 1},
        budget={"seconds": 0.1},
    )
    assert answer["stopped_by"] == "budget.seconds"
    assert answer["timing_ms"]["total"] < 5_000


def test_stream_tells_every_change_and_ends_with_the_same_result(http: httpx2.Client) -> None:
    whole = search(http, strategy=BEAM)
    with http.stream("POST", "/v1/search", json=BODY | {"strategy": BEAM, "stream": True}) as got:
        assert got.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in got.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    *events, last = map(json.loads, lines[:-1])
    assert last["type"] == "result"
    assert without_clock(last["result"]) == without_clock(whole)
    assert {event["type"] for event in events} <= {"expanded", "scored", "pruned", "finished"}
    expanded = [event for event in events if event["type"] == "expanded"]
    assert len(expanded) == BEAM["n"] * whole["rounds"]


def test_a_stream_that_cannot_begin_is_an_error_with_a_status(http: httpx2.Client) -> None:
    response = http.post("/v1/search", json=BODY | {"policy": "nope", "stream": True})
    assert response.status_code == 404
    response = http.post("/v1/search", json=BODY | {"problem": "x" * 300, "stream": True})
    assert response.status_code == 400
    assert "303 tokens long" in response.json()["error"]["message"]


def test_a_caller_who_leaves_frees_the_engine(http: httpx2.Client) -> None:
    body = BODY | {"strategy": {"type": "best_of_n", "n": 512}}
    body["sampling"] = {"max_tokens": 200, "seed": 1}

    def in_flight() -> str:
        (line,) = [
            line
            for line in http.get("/metrics").text.splitlines()
            if line.startswith("rung_engine_requests_in_flight")
        ]
        return line.split()[-1]

    for path in ("whole", "stream"):
        with pytest.raises(httpx2.ReadTimeout):
            http.post("/v1/search", json=body | {"stream": path == "stream"}, timeout=0.3)
        poll(lambda: in_flight() == "0.0", seconds=1, what=f"engine free after {path}")
