"""Whole searches with a real vLLM as the policy and the engine as the PRM, over HTTP."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from prm.manifest import ModelVersion
from server.settings import BUNDLED_MODELS
from tests.integration.vllm.conftest import PolicyServer
from tests.server.conftest import rung_serve

pytestmark = pytest.mark.vllm

PROBLEM = "Evaluate (3+4)*2-5"
BEST = {"type": "best_of_n", "n": 16}
BEAM = {"type": "beam", "selection": "prm", "n": 8, "width": 4}


@pytest.fixture(scope="module")
def http(vllm: PolicyServer) -> Iterator[httpx2.Client]:
    """A client of a `rung serve` that has vLLM for policies, and an engine with the PRM."""
    with (
        rung_serve(
            BUNDLED_MODELS,
            RUNG_POLICY_URL=f"{vllm.url}/v1",
            RUNG_POLICY_API_KEY=vllm.api_key,
        ) as running,
        httpx2.Client(base_url=running.url, timeout=120) as client,
    ):
        yield client


def search(
    http: httpx2.Client, policy: str, prm: ModelVersion, strategy: dict[str, Any], **changes: Any
) -> dict[str, Any]:
    body = {
        "policy": policy,
        "prm": prm.manifest.name,
        "problem": PROBLEM,
        "strategy": strategy,
        "sampling": {"temperature": 1.0, "max_tokens": 120, "seed": 3},
        "include": ["candidates", "tree"],
    }
    response = http.post("/v1/search", json=body | changes)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("strategy", [BEST, BEAM])
def test_a_search_writes_with_vllm_and_scores_with_the_engine(
    http: httpx2.Client, vllm: PolicyServer, prm_version: ModelVersion, strategy: dict[str, Any]
) -> None:
    answer = search(http, vllm.model, prm_version, strategy)
    assert answer["policy"] == vllm.model
    # The weights behind a policy server's name are its own affair.
    assert answer["policy_version"] == "external"
    assert answer["prm_version"] == prm_version.manifest.version
    candidates = answer["candidates"]
    assert len(candidates) >= strategy["n"]
    best = max(c["score"] for c in candidates if c["finish_reason"] in ("stop", "length"))
    assert answer["score"] == best
    for candidate in candidates:
        steps = [step["text"] for step in candidate["steps"]]
        assert "".join(candidate["text"].split()) == "".join("".join(steps).split())
        # A byte is a token, and so is the end of a turn.
        ended = candidate["finish_reason"] == "stop"
        assert candidate["tokens"] == len(candidate["text"].encode()) + ended


@pytest.mark.parametrize("strategy", [BEST, BEAM])
def test_the_same_seed_gives_the_same_texts(
    http: httpx2.Client, vllm: PolicyServer, prm_version: ModelVersion, strategy: dict[str, Any]
) -> None:
    first, again = (search(http, vllm.model, prm_version, strategy) for _ in range(2))
    assert [c["text"] for c in first["candidates"]] == [c["text"] for c in again["candidates"]]
    assert first["text"] == again["text"]
    assert first["usage"] == again["usage"]


def test_events_are_streamed_as_candidates_end(
    http: httpx2.Client, vllm: PolicyServer, prm_version: ModelVersion
) -> None:
    body = {
        "policy": vllm.model,
        "prm": prm_version.manifest.name,
        "problem": PROBLEM,
        "strategy": BEST,
        "stream": True,
    }
    with http.stream("POST", "/v1/search", json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    assert [event["type"] for event in events].count("expanded") == BEST["n"]
    assert events[-1]["type"] == "result"


def test_a_policy_that_nobody_serves_is_named(
    http: httpx2.Client, vllm: PolicyServer, prm_version: ModelVersion
) -> None:
    body = {"policy": "nobody", "prm": prm_version.manifest.name, "problem": PROBLEM}
    response = http.post("/v1/search", json=body | {"strategy": BEST})
    assert response.status_code == 404
    assert vllm.model in response.json()["error"]["message"]
    assert vllm.api_key not in response.text
