"""Which PRM is scored where; real vLLM servers score in `tests/integration/vllm`."""

import json
import re
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr

from prm.engine.client import EngineClient, EngineState
from prm.engine.process import EngineOptions
from prm.errors import InvalidInput, Unavailable
from prm.registry import Registry
from prm.steps import join_steps
from prm.types import Trajectory
from server.scoring import Scoring
from tests.factories import POLICY, PRM, PROBLEM, STEPS, user
from tests.server.commands import rung_process
from tests.server.conftest import free_port, rung_serve

URL = "http://127.0.0.1:9"
KEY = "sk-do-not-tell"


@pytest.fixture
def registry(tiny_models: Path) -> Registry:
    return Registry.open(tiny_models)


def scoring(urls: dict[str, str], registry: Registry) -> Scoring:
    return Scoring(urls, SecretStr(KEY), registry)


async def refusal(ours: Scoring, registry: Registry) -> str:
    """What scoring says where neither the engine nor a vLLM server runs."""
    response, steps = join_steps(STEPS, "\n")
    item = Trajectory(messages=user(PROBLEM), response=response, steps=steps)
    snapshot = ours.snapshot(registry, EngineClient([], EngineOptions()))
    (scorer,) = snapshot.scorers.values()
    with pytest.raises(Unavailable) as refused:
        await scorer.score([item])
    await ours.aclose()
    return str(refused.value)


@pytest.mark.anyio
async def test_without_urls_the_engine_scores(registry: Registry) -> None:
    ours = scoring({}, registry)
    assert set(ours.engine_folders(registry)) == {version.folder for version in registry}
    assert "the engine is starting" in await refusal(ours, registry)


@pytest.mark.parametrize("urls", [{PRM: URL, POLICY: URL}, {f"{PRM}@1": URL, f"{POLICY}@1": URL}])
@pytest.mark.anyio
async def test_the_engine_does_not_hold_what_is_scored_elsewhere(
    registry: Registry, urls: dict[str, str]
) -> None:
    ours = scoring(urls, registry)
    # The policy still writes here.
    assert [folder.parent.name for folder in ours.engine_folders(registry)] == [POLICY]
    assert "the vLLM server at 127.0.0.1:9 does not answer" in await refusal(ours, registry)


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ({"nobody": URL}, f"no model is named 'nobody'; there is {POLICY}@1, {PRM}@1"),
        ({f"{PRM}@2": URL}, f"no model is named '{PRM}@2'"),
        ({PRM: URL}, f"{PRM}@1 is read together with {POLICY}@1; give that one's URL too"),
        ({POLICY: URL}, f"no PRM with a URL reads {POLICY}@1"),
        ({PRM: "127.0.0.1:8000", POLICY: URL}, "a vLLM server's URL is http://HOST:PORT"),
    ],
)
def test_urls_that_do_not_fit_the_models_are_refused(
    registry: Registry, urls: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as refused:
        scoring(urls, registry)
    assert refused.value.param == "scoring_urls"


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (["--scoring-url", URL], {}, f"--scoring-url '{URL}' is not NAME=URL"),
        (["--scoring-url", f"{PRM}={URL}"], {}, f"{PRM}@1 is read together with {POLICY}@1"),
        ([], {"RUNG_SCORING_URLS": URL}, "scoring_urls: .*is no JSON object of URLs"),
        ([], {"RUNG_SCORING_URLS": "[1]"}, "scoring_urls: .*valid dictionary"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    tiny_models: Path, options: list[str], environment: dict[str, str], message: str
) -> None:
    done = rung_process("serve", f"--models={tiny_models}", *options, **environment)
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr


@pytest.mark.slow
def test_a_vllm_server_that_is_not_there_costs_only_its_own_scores(tiny_models: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    urls = json.dumps(dict.fromkeys((PRM, POLICY), f"http://{address}"))
    with rung_serve(tiny_models, RUNG_SCORING_URLS=urls, RUNG_SCORING_API_KEY=KEY) as server:
        answer = httpx2.post(
            f"{server.url}/v1/prm/score",
            json={"model": PRM, "items": [{"problem": PROBLEM, "steps": list(STEPS)}]},
            timeout=30,
        )
        assert answer.status_code == 503
        assert f"the vLLM server at {address} does not answer" in answer.text
        assert KEY not in answer.text
        search = {
            "problem": PROBLEM,
            "policy": POLICY,
            "strategy": {"type": "best_of_n", "n": 2, "selection": "first"},
        }
        assert httpx2.post(f"{server.url}/v1/search", json=search, timeout=30).status_code == 200


@pytest.mark.anyio
async def test_an_engine_that_holds_nothing_is_ready() -> None:
    engine = EngineClient([], EngineOptions())
    engine.start()
    try:
        await engine.wait_settled()
        assert engine.state is EngineState.READY
    finally:
        await engine.close()
