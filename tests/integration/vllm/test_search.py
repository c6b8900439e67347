"""Whole searches with a real vLLM as the policy and the engine as the PRM, over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from prm.manifest import ModelVersion
from server.settings import BUNDLED_MODELS
from tests.integration.vllm.conftest import PolicyServer

pytestmark = pytest.mark.vllm

PROBLEM = "Evaluate (3+4)*2-5"
BEST = {"type": "best_of_n", "n": 16}
BEAM = {"type": "beam", "n": 8, "width": 4}
READY_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def http(vllm: PolicyServer) -> Iterator[httpx2.Client]:
    """A client of `rung serve --policy-url`, whose engine has the PRM."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "server", "serve"),
            *(f"--port={port}", f"--models={BUNDLED_MODELS}", f"--policy-url={vllm.url}/v1"),
        ],
        env=os.environ
        | {
            "RUNG_POLICY_API_KEY": vllm.api_key,
            "RUNG_THREADS": "1",
            "RUNG_KEYS_FILE": "/nonexistent",
        },
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            _wait_until_ready(client, process)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


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


def _wait_until_ready(client: httpx2.Client, process: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, "rung serve ended"
        try:
            if client.get("/health/ready").is_success:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.05)
    pytest.fail(f"rung serve is not ready after {READY_TIMEOUT_S:.0f} s")
