"""Which policy answers when a policy server is there, is gone, or never was."""

import asyncio
from pathlib import Path

import httpx2
import pytest

from prm.errors import Unavailable, UnknownModel
from search.generators.openai_server import OpenAIServer
from server.policies import Policies
from tests.factories import POLICY, PRM
from tests.search.fakes import ScriptedGenerator
from tests.search.generators.scripted_server import ScriptedServer, serving, spoken
from tests.server.conftest import free_port, rung_serve

pytestmark = pytest.mark.anyio


def local() -> ScriptedGenerator:
    return ScriptedGenerator(lambda prefix, nth: ("x", "eos"))


async def test_without_a_policy_server_local_policies_answer() -> None:
    mine = local()
    policies = Policies(lambda: {"mine": mine}, None)
    assert await policies.get("mine") is mine
    assert await policies.remote_names() == []
    with pytest.raises(UnknownModel, match="there is mine"):
        await policies.get("other")


async def test_a_server_that_never_answered_may_serve_any_name() -> None:
    port = free_port()
    async with OpenAIServer(f"http://127.0.0.1:{port}") as server:
        mine = local()
        policies = Policies(lambda: {"mine": mine}, server)
        with pytest.raises(Unavailable, match="policy 'mine': the policy server") as dead:
            await policies.get("mine")
        assert str(port) not in str(dead.value)
        assert await policies.remote_names() == []


async def test_a_server_that_has_just_told_its_models_is_not_asked_for_each_search() -> None:
    scripted = ScriptedServer(lambda body, nth: spoken("5"))
    async with serving(scripted), OpenAIServer(scripted.url) as server:
        policies = Policies(dict, server)
        for _ in range(2):
            found = await asyncio.gather(*(policies.get("m") for _ in range(4)))
            assert {each.name for each in found} == {"m"}
        assert scripted.requests == 1
        # One that it did not name may be there by now; and after a failure nothing is sure.
        with pytest.raises(UnknownModel, match="there is m"):
            await policies.get("new")
        assert scripted.requests == 2
        scripted.statuses = [(500, {})] * 3
        with pytest.raises(Unavailable):
            await anext(server.complete({}))
        asked = scripted.requests
        await policies.get("m")
        assert scripted.requests == asked + 1


def test_a_dead_policy_server_is_503_by_its_policys_name_and_shows_in_health_and_metrics(
    tiny_models: Path,
) -> None:
    port = free_port()
    address = f"http://someone:secret@127.0.0.1:{port}/v1"
    with (
        rung_serve(
            tiny_models, RUNG_POLICY_URL=address, RUNG_POLICY_API_KEY="sk-hidden"
        ) as running,
        httpx2.Client(base_url=running.url, timeout=60) as http,
    ):
        body = {"policy": POLICY, "prm": PRM, "problem": "1+1", "strategy": {"type": "best_of_n"}}
        assert http.get("/health/ready").json()["policy_server"] == "closed"
        for _ in range(6):
            answer = http.post("/v1/search", json=body)
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"]["message"].startswith(f"policy '{POLICY}': the policy")
            assert not any(word in answer.text for word in ("secret", "sk-hidden", str(port)))
            assert int(answer.headers["Retry-After"]) >= 1
        assert "is not asked for another" in answer.text
        ready = http.get("/health/ready")
        assert (ready.status_code, ready.json()["policy_server"]) == (200, "open")
        metrics = http.get("/metrics").text
    assert 'rung_policy_server_breaker{state="open"} 1.0' in metrics
    assert 'rung_policy_server_breaker{state="closed"} 0.0' in metrics
    assert "rung_policy_server_failures_total 5.0" in metrics
