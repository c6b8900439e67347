"""Whatever is sent: a clear error in OpenAI's shape, and the server serves on."""

import json
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.factories import POLICY, PRM

JSON = {"Content-Type": "application/json"}
ITEM = {"problem": "1+1", "steps": ["1+1=2"]}
SEARCH = {"policy": POLICY, "prm": PRM, "problem": "1+1"}


def score_with(**changes: Any) -> dict[str, Any]:
    return {"model": PRM, "items": [ITEM]} | changes


def item_with(**changes: Any) -> dict[str, Any]:
    item = {k: v for k, v in (ITEM | changes).items() if v is not ...}
    return {"model": PRM, "items": [ITEM, item]}


def cut_with(pattern: str, response: str) -> dict[str, Any]:
    return {
        "model": PRM,
        "items": [{"problem": "1+1", "response": response}],
        "segmentation": {"mode": "regex", "pattern": pattern},
    }


SCORE_CASES: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown model": (score_with(model="nope"), 404, "model"),
    "a policy as PRM": (score_with(model=POLICY), 404, "model"),
    "unknown version": (score_with(model=f"{PRM}@9"), 404, "model"),
    "a path as model": (score_with(model="../../etc/passwd"), 404, "model"),
    "zero items": (score_with(items=[]), 422, "items"),
    "too many items": (score_with(items=[ITEM] * 513), 400, "items"),
    "far too many items": (score_with(items=[0] * 200_000), 422, "items"),
    "a book": (item_with(problem="x" * 2_000_000), 422, "items[1].problem"),
    "empty steps": (item_with(steps=[]), 400, "items[1].steps"),
    "empty step": (item_with(steps=["a", ""]), 400, "items[1].steps[1]"),
    "blank step": (item_with(steps=["a", " \n\t"]), 400, "items[1].steps[1]"),
    "blank response": (item_with(steps=..., response=" \n "), 400, "items[1].response"),
    "steps and response": (item_with(response="x"), 422, "items[1]"),
    "neither": (item_with(steps=...), 422, "items[1]"),
    "no problem": (item_with(problem=...), 422, "items[1]"),
    "empty problem": (item_with(problem=""), 422, "items[1].problem"),
    "longer than the context": (item_with(steps=["x" * 300]), 400, "items[1]"),
    "NUL": (item_with(steps=["a\0b"]), 422, "items[1].steps[0]"),
    "lone surrogate": (item_with(steps=["a\ud800"]), 422, "items[1].steps[0]"),
    "unknown field": (score_with(itmes=[]), 422, "itmes"),
    "unknown item field": (item_with(stpes=[]), 422, "items[1].stpes"),
    "unknown aggregation": (score_with(aggregation="median"), 422, "aggregation"),
    "no calibration": (score_with(include=["calibrated"]), 400, "include"),
    "wrong type": (score_with(items="x"), 422, "items"),
    "number as step": (item_with(steps=[1]), 422, "items[1].steps[0]"),
    "control token": (item_with(problem="a<|end|>"), 400, "items[1].problem"),
    "delimiter without mode": (score_with(segmentation={"delimiter": "x"}), 422, "segmentation"),
    "unknown mode": (score_with(segmentation={"mode": "x"}), 422, "segmentation.mode"),
    "pattern without mode": (score_with(segmentation={"pattern": "x"}), 422, "segmentation"),
    "regex without pattern": (score_with(segmentation={"mode": "regex"}), 422, "segmentation"),
    "empty pattern": (cut_with("", "x"), 422, "segmentation.pattern"),
    "no pattern": (cut_with("(", "x"), 422, "segmentation.pattern"),
    "pattern of nothing": (cut_with("x*", "x"), 422, "segmentation.pattern"),
    "exploding pattern": (cut_with("(a+)+b", "a" * 99), 422, "segmentation.pattern"),
    "long pattern": (cut_with("x" * 257, "x"), 422, "segmentation.pattern"),
    "only separators": (cut_with("x", "x x"), 400, "items[0].response"),
    "too many steps": (cut_with("x", "ax" * 10_001), 400, "items[0].response"),
}

SEARCH_CASES: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown policy": ({"policy": "nope"}, 404, "policy"),
    "unknown prm": ({"prm": "nope"}, 404, "prm"),
    "prm needed": ({"prm": None}, 400, "prm"),
    "n = 0": ({"strategy": {"type": "best_of_n", "n": 0}}, 422, "strategy.n"),
    "n = 10^6": ({"strategy": {"type": "best_of_n", "n": 10**6}}, 400, "strategy.n"),
    "n = 10^10": ({"strategy": {"type": "best_of_n", "n": 10**10}}, 422, "strategy.n"),
    "unknown strategy": ({"strategy": {"type": "magic"}}, 422, "strategy"),
    "width": ({"strategy": {"type": "beam", "n": 6, "width": 4}}, 422, "strategy"),
    "negative temperature": ({"sampling": {"temperature": -0.1}}, 422, "sampling.temperature"),
    "NaN temperature": ({"sampling": {"temperature": float("nan")}}, 422, "sampling.temperature"),
    "top_p 0": ({"sampling": {"top_p": 0}}, 422, "sampling.top_p"),
    "max_tokens 0": ({"sampling": {"max_tokens": 0}}, 422, "sampling.max_tokens"),
    "empty stop": ({"sampling": {"stop": [""]}}, 422, "sampling.stop[0]"),
    "budget 0 tokens": ({"budget": {"tokens": 0}}, 422, "budget.tokens"),
    "budget 0 seconds": ({"budget": {"seconds": 0}}, 422, "budget.seconds"),
    "budget below n": ({"budget": {"tokens": 3}}, 400, "budget.tokens"),
    "long problem": ({"problem": "x" * 300}, 400, "problem"),
    "NUL": ({"problem": "a\0"}, 422, "problem"),
}


def assert_error(response: httpx2.Response, status: int, param: str | None) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert "Traceback" not in response.text
    return str(error["message"])


@pytest.mark.parametrize("name", SCORE_CASES)
def test_a_bad_score_request(http: httpx2.Client, name: str) -> None:
    body, status, param = SCORE_CASES[name]
    response = http.post("/v1/prm/score", content=json.dumps(body), headers=JSON)
    assert_error(response, status, param)


@pytest.mark.parametrize("name", SEARCH_CASES)
def test_a_bad_search_request(http: httpx2.Client, name: str) -> None:
    changes, status, param = SEARCH_CASES[name]
    response = http.post("/v1/search", content=json.dumps(SEARCH | changes), headers=JSON)
    assert_error(response, status, param)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[1]", 400),
        (b'"x"', 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"model": ' + b"9" * 5000 + b"}", 400),
        (b'{"\\ud800": 1}', 422),
    ],
)
def test_a_body_that_is_no_request(http: httpx2.Client, content: bytes, status: int) -> None:
    response = http.post("/v1/prm/score", content=content, headers=JSON)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]


def test_the_wrong_content_type_is_named(http: httpx2.Client) -> None:
    response = http.post(
        "/v1/prm/score", content=json.dumps(score_with()), headers={"Content-Type": "text/plain"}
    )
    assert "Content-Type: application/json" in assert_error(response, 400, None)


def test_too_long_names_both_numbers(http: httpx2.Client) -> None:
    response = http.post("/v1/prm/score", json=item_with(steps=["x" * 300]))
    message = response.json()["error"]["message"]
    assert "306 tokens" in message
    assert "at most 256" in message


def test_a_number_out_of_range_is_repeated(http: httpx2.Client) -> None:
    response = http.post(
        "/v1/search", json=SEARCH | {"strategy": {"type": "best_of_n", "n": 10**6}}
    )
    message = response.json()["error"]["message"]
    assert "512" in message
    assert "1000000" in message


def test_ten_megabytes_are_refused_by_size(http: httpx2.Client) -> None:
    body = json.dumps(item_with(steps=["x" * 10_000_000])).encode()
    response = http.post("/v1/prm/score", content=body, headers=JSON)
    assert response.status_code == 413
    assert str(len(body)) in response.json()["error"]["message"]

    def in_pieces() -> Any:
        for start in range(0, len(body), 1 << 16):
            yield body[start : start + (1 << 16)]

    response = http.post("/v1/prm/score", content=in_pieces(), headers=JSON)
    assert response.status_code == 413


def test_unknown_routes_and_methods_have_the_same_shape(http: httpx2.Client) -> None:
    assert_error(http.get("/v1/nope"), 404, None)
    assert_error(http.get("/v1/prm/score"), 405, None)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["model", "items", "problem", "steps", "policy", "strategy", "type"]
                )
                | st.sampled_from(
                    ["messages", "role", "content", "search", "query", "documents", "text"]
                )
                | st.text(max_size=5),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(["/v1/prm/score", "/v1/search", "/v1/chat/completions", "/rerank"]),
)
def test_no_json_brings_the_server_to_a_500(http: httpx2.Client, body: Any, path: str) -> None:
    response = http.post(path, content=json.dumps(body), headers=JSON)
    assert response.status_code in (400, 404, 422), response.text


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(max_size=40), st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_any_text_is_scored_or_refused(http: httpx2.Client, problem: str, steps: list[str]) -> None:
    body = {"model": PRM, "items": [{"problem": problem, "steps": steps}]}
    response = http.post("/v1/prm/score", json=body)
    assert response.status_code in (200, 400, 422), response.text
    if response.status_code == 200:
        assert [s["text"] for s in response.json()["data"][0]["steps"]] == steps
