"""Every strategy in the table over the real server: one contract for all of them."""

import json
from typing import Any, get_args

import httpx2
import pytest

from search.strategies import Strategy
from tests.factories import POLICY, PRM, PROBLEM
from tests.server.conftest import poll, without_clock

KINDS = get_args(get_args(Strategy)[0])
FIELDS: dict[str, Any] = {kind.model_fields["type"].default: kind.model_fields for kind in KINDS}
SMALL: dict[str, Any] = {"n": 4, "width": 2, "max_rounds": 4, "simulations": 6, "chunk": 8}
BODY: dict[str, Any] = {
    "policy": POLICY,
    "prm": PRM,
    "problem": PROBLEM,
    "sampling": {"temperature": 1.0, "max_tokens": 40, "seed": 7},
    "include": ["candidates", "tree"],
}

every_strategy = pytest.mark.parametrize("type_", FIELDS)


def small(type_: str) -> dict[str, Any]:
    """The strategy with as many of the small settings as it has."""
    return {"type": type_} | {name: SMALL[name] for name in SMALL if name in FIELDS[type_]}


def search(http: httpx2.Client, type_: str, **changes: Any) -> Any:
    response = http.post("/v1/search", json=BODY | {"strategy": small(type_)} | changes)
    assert response.status_code == 200, response.text
    return response.json()


@every_strategy
def test_the_accounts_are_exact_and_the_winner_is_a_candidate(
    http: httpx2.Client, type_: str
) -> None:
    answer = search(http, type_)
    nodes = {node["index"]: node for node in answer["tree"]}
    written = sum(
        node["tokens"] - (nodes[node["parent"]]["tokens"] if node["parent"] is not None else 0)
        for node in nodes.values()
    )
    usage = answer["usage"]
    assert usage["generated_tokens"] == written
    assert usage["policy_calls"] == len(nodes)
    assert usage["scored_tokens"] + usage["cached_tokens"] > 0
    winners = [c for c in answer["candidates"] if c["text"] == answer["text"]]
    assert written - usage["discarded_tokens"] in [winner["tokens"] for winner in winners]
    assert all(c["finish_reason"] for c in answer["candidates"])
    assert all(c["tokens"] <= 40 for c in answer["candidates"])
    assert answer["stopped_by"] in ("finished", "max_rounds")


@every_strategy
def test_streamed_it_is_the_same_search(http: httpx2.Client, type_: str) -> None:
    whole = search(http, type_)
    body = BODY | {"strategy": small(type_), "stream": True}
    with http.stream("POST", "/v1/search", json=body) as got:
        lines = [line.removeprefix("data: ") for line in got.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    *events, last = map(json.loads, lines[:-1])
    assert without_clock(last["result"]) == without_clock(whole)
    expanded = [event["candidate"] for event in events if event["type"] == "expanded"]
    assert sorted(expanded) == list(range(whole["usage"]["policy_calls"]))


def test_a_particle_filter_tells_its_effective_sample_size(http: httpx2.Client) -> None:
    body = BODY | {"strategy": small("particle_filter"), "stream": True}
    with http.stream("POST", "/v1/search", json=body) as got:
        lines = [line.removeprefix("data: ") for line in got.iter_lines() if line]
    events = [json.loads(line) for line in lines[:-2]]
    sizes = [event["ess"] for event in events if event["type"] == "scored"]
    assert sizes
    assert all(1 <= size <= 4 + 1e-9 for size in sizes)


@every_strategy
@pytest.mark.parametrize("tokens", [10, 50])
def test_a_token_budget_is_never_exceeded(http: httpx2.Client, type_: str, tokens: int) -> None:
    answer = search(http, type_, budget={"tokens": tokens})
    assert answer["usage"]["generated_tokens"] <= tokens
    assert answer["candidates"]


@every_strategy
def test_stop_strings_that_are_signs_of_a_regex_are_only_strings(
    http: httpx2.Client, type_: str
) -> None:
    stop = [".", "(", "[", "\\", "*", "+", "?", "$", "^", "|"]
    answer = search(http, type_, sampling=BODY["sampling"] | {"stop": stop, "temperature": 2.0})
    texts = [candidate["text"] for candidate in answer["tree"]]
    assert any(texts)
    assert not [text for text in texts if any(sign in text for sign in stop)]


@every_strategy
def test_a_caller_who_leaves_frees_the_engine(http: httpx2.Client, type_: str) -> None:
    large = {"n": 64, "width": 8, "max_rounds": 500, "simulations": 10_000, "chunk": 500}
    fields = {name: large[name] for name in large if name in FIELDS[type_]}
    body = BODY | {"strategy": {"type": type_} | fields}
    body["sampling"] = {"max_tokens": 200, "seed": 1}
    with pytest.raises(httpx2.ReadTimeout):
        http.post("/v1/search", json=body, timeout=0.15)
    poll(lambda: in_flight(http) == "0.0", seconds=2, what=f"engine free after {type_}")


def in_flight(http: httpx2.Client) -> str:
    """What the server says of the requests that are in its engine."""
    (line,) = [
        line
        for line in http.get("/metrics").text.splitlines()
        if line.startswith("rung_engine_requests_in_flight")
    ]
    return line.split()[-1]
