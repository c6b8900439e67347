"""Which policy answers when a policy server is there, is gone, or never was."""

import pytest

from prm.errors import Unavailable, UnknownModel
from search.generators.openai_http import OpenAIServer
from server.policies import Policies
from tests.search.fakes import ScriptedGenerator
from tests.server.conftest import free_port

pytestmark = pytest.mark.anyio


def local() -> ScriptedGenerator:
    return ScriptedGenerator(lambda prefix, nth: ("x", "eos"))


async def test_without_a_policy_server_local_policies_answer() -> None:
    mine = local()
    policies = Policies({"mine": mine}, None)
    assert await policies.get("mine") is mine
    assert await policies.remote_names() == []
    with pytest.raises(UnknownModel, match="there is mine"):
        await policies.get("other")


async def test_a_server_that_never_answered_may_serve_any_name() -> None:
    address = f"127.0.0.1:{free_port()}"
    async with OpenAIServer(f"http://{address}") as server:
        policies = Policies({"mine": local()}, server)
        with pytest.raises(Unavailable, match=address):
            await policies.get("mine")
        assert await policies.remote_names() == []
