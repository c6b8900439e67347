"""A client that leaves in mid-search takes its sequences with it: by Rung's metrics and vLLM's."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from prm.manifest import ModelVersion
from server.settings import BUNDLED_MODELS
from tests.integration.vllm.conftest import MAX_SEQUENCES, PolicyServer
from tests.server.conftest import HTTP, poll, rung_serve

pytestmark = pytest.mark.vllm

PROBLEM = "Evaluate (93-58)*(7+6*8)-(47+28)*9+7*(66-8*7)"
# MAX_SEQUENCES are written at a time. A fast machine writes a thousand in a few seconds, in which a
# busy vLLM answers few questions for its metrics.
CANDIDATES = 4096
STRATEGIES: dict[str, dict[str, Any]] = {
    "best_of_n": {"type": "best_of_n", "n": CANDIDATES},
    "beam": {"type": "beam", "n": 512, "width": 2},
}
# Fewer than each would write if nobody left: all candidates; six rounds of the beams.
MOST_AFTER = {"best_of_n": CANDIDATES, "beam": 4 * 512}
# Seconds prove nothing here: vLLM's front end takes three of them to drop 4,096 sequences, in which
# it answers nobody, and on two busy cores any process may wait as long for its turn.
PATIENCE_S = 60.0
ENDED = "vllm:request_success_total"


@pytest.fixture(scope="module")
def rung(vllm: PolicyServer) -> Iterator[str]:
    """The URL of a `rung serve` that has vLLM for policies, and an engine with the PRM."""
    with rung_serve(
        BUNDLED_MODELS,
        RUNG_POLICY_URL=f"{vllm.url}/v1",
        RUNG_POLICY_API_KEY=vllm.api_key,
        RUNG_MAX_CANDIDATES=str(CANDIDATES),
    ) as running:
        yield running.url


def metrics(url: str) -> Callable[[str], float]:
    """A server's metrics at one moment: by name, the sum over its labels."""
    lines = HTTP.get(f"{url}/metrics", timeout=PATIENCE_S).text.splitlines()

    def value(name: str) -> float:
        of_it = [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        assert of_it, name
        return sum(float(line.split()[-1]) for line in of_it)

    return value


def metric(url: str, name: str) -> float:
    """One of a server's metrics."""
    return metrics(url)(name)


def at_vllm(vllm: PolicyServer) -> float:
    """Sequences that it writes or keeps waiting."""
    return unfinished(metrics(vllm.url))


def unfinished(value: Callable[[str], float]) -> float:
    """Of vLLM's metrics: sequences that it writes or keeps waiting."""
    return value("vllm:num_requests_running") + value("vllm:num_requests_waiting")


async def leave(url: str, body: dict[str, Any], is_in_the_middle: Callable[[], bool]) -> None:
    """Ask for a search and close the connection in the middle of it."""
    async with httpx2.AsyncClient(base_url=url, timeout=120) as http:
        asked = asyncio.create_task(http.post("/v1/search", json=body))
        while not await asyncio.to_thread(is_in_the_middle):
            assert not asked.done(), "it had its answer before it left"
            await asyncio.sleep(0.01)
        asked.cancel()
        with suppress(asyncio.CancelledError):
            await asked


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_a_client_that_leaves_frees_its_sequences_before_they_have_ended(
    rung: str, vllm: PolicyServer, prm_version: ModelVersion, strategy: str, is_streamed: bool
) -> None:
    poll(lambda: at_vllm(vllm) == 0, seconds=PATIENCE_S, what="vLLM has nothing to do")
    body = {
        "policy": vllm.model,
        "prm": prm_version.manifest.name,
        "problem": PROBLEM,
        "strategy": STRATEGIES[strategy],
        "sampling": {"temperature": 1.0, "max_tokens": 400, "seed": 3},
        "stream": is_streamed,
    }
    # Of the beams, the second round has begun.
    enough = metric(vllm.url, ENDED) + (STRATEGIES[strategy]["n"] if strategy == "beam" else 0)

    def is_in_the_middle() -> bool:
        value = metrics(vllm.url)
        return unfinished(value) >= MAX_SEQUENCES and value(ENDED) >= enough

    asyncio.run(leave(rung, body, is_in_the_middle))
    poll(lambda: metric(rung, "rung_requests_in_flight") == 0, seconds=PATIENCE_S, what="Rung free")
    poll(lambda: at_vllm(vllm) == 0, seconds=PATIENCE_S, what="vLLM free")
    assert metric(vllm.url, ENDED) - enough < MOST_AFTER[strategy], "nobody stopped them"
    assert metric(rung, "rung_engine_requests_in_flight") == 0
    # Nothing comes after it: no round that had been planned, and no second try.
    written = metric(vllm.url, "vllm:generation_tokens_total")
    time.sleep(0.5)
    assert metric(vllm.url, "vllm:generation_tokens_total") == written
    assert at_vllm(vllm) == 0
