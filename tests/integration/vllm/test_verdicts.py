"""Generative PRMs on a real vLLM: what is written and read there is what our engine makes of it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from prm.backends.golden_gate import VerdictGate
from prm.backends.vllm import VllmBackend, VllmModel
from prm.backends.writing import VllmVerdicts
from prm.chat import ChatTokenizer
from prm.errors import Unavailable
from prm.families.base import ReadOutput
from prm.families.generative import load_generative
from prm.generative_scorer import GenerativeScorer
from prm.manifest import ModelVersion
from prm.registry import read_version
from prm.verification import Ask, Style
from tests.generative import (
    PROBLEM,
    STEPS,
    LocalVerdicts,
    publish_generative,
    set_recipe,
    trajectory,
)
from tests.integration.vllm.conftest import ServedFolder, VllmServer, running_vllm
from tests.server.conftest import rung_serve

pytestmark = [pytest.mark.vllm, pytest.mark.anyio]

# Both compute in float32; the model's random weights are large, and its logits reach tens.
TOLERANCE = 1e-3
CONTEXT = 1024
NAME = "verifier"
RECIPE = {"name": "thinkprm", "max_tokens": 24}
SAMPLED = {"name": "genprm", "samples": 4, "max_tokens": 24}
ITEMS = (trajectory(), trajectory(["2"], problem="1+1"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A greedy ThinkPRM, which vLLM serves, and a GenPRM of the same weights."""
    root = tmp_path_factory.mktemp("verifiers")
    publish_generative(root, NAME, RECIPE, context=CONTEXT)
    publish_generative(root, "sampled", SAMPLED, context=CONTEXT)
    return root


@pytest.fixture(scope="module")
def version(root: Path) -> ModelVersion:
    return read_version(root / NAME / "1")


@pytest.fixture(scope="module")
def sampled(root: Path) -> ModelVersion:
    return read_version(root / "sampled" / "1")


@pytest.fixture(scope="module")
def vllm(version: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    # A prompt that is read in two steps, with a seed, ends vLLM 0.32 on a CPU.
    flags = [f"--max-model-len={CONTEXT}", "--max-num-seqs=16"]
    flags += [f"--max-num-batched-tokens={16 * CONTEXT}"]
    served = ServedFolder(name=NAME, folder=version.folder)
    with running_vllm([served], tmp_path_factory.mktemp("logs"), flags) as (server,):
        yield server


@asynccontextmanager
async def verdicts(vllm: VllmServer, version: ModelVersion) -> AsyncIterator[VllmVerdicts]:
    model = VllmModel(url=vllm.url, name=vllm.model, api_key=vllm.api_key)
    backend = VllmBackend({version.key: model})
    found = VllmVerdicts(backend, model)
    try:
        yield found
    finally:
        await found.aclose()
        await backend.aclose()


def odds(output: ReadOutput) -> float:
    good, bad = output.values
    return good - bad


@pytest.mark.parametrize("name", [NAME, "sampled"])
async def test_verdicts_are_read_as_the_engine_reads_them(
    vllm: VllmServer, root: Path, name: str
) -> None:
    version = read_version(root / name / "1")
    verifier = load_generative(version, ChatTokenizer(version.folder))
    reads = [read for item in ITEMS for read in verifier.silent(item)]
    here = (await LocalVerdicts(version).read(reads)).outputs
    async with verdicts(vllm, version) as model:
        there = (await model.read(reads)).outputs
    assert [odds(output) for output in there] == pytest.approx(
        [odds(output) for output in here], abs=TOLERANCE
    )


async def test_texts_end_for_the_same_reasons(vllm: VllmServer, version: ModelVersion) -> None:
    ids = ChatTokenizer(version.folder).encode_markup("<|im_start|>user\nWhat?<|im_end|>\n")
    local = LocalVerdicts(version)
    asks = [Ask(ids=ids[: 3 + n], seed=n, max_tokens=40) for n in range(12)]
    style = Style(temperature=0.0, top_p=1.0, top_k=0, stop=())
    whole = await local.write(asks, style)
    async with verdicts(vllm, version) as model:
        there = await model.write(asks, style)
        # Bytes at the end that make no character are not handed over by vLLM.
        assert there == [replace(p, text=p.text.rstrip("\ufffd")) for p in whole]
        # A stop string from the middle of each text ends it there, and is left out of it.
        for ask, piece in zip(asks, whole, strict=True):
            stop = piece.text[len(piece.text) // 2 :][:2]
            if "\ufffd" in stop or not stop:
                continue
            stopping = Style(temperature=0.0, top_p=1.0, top_k=0, stop=(stop,))
            (stopped,) = await model.write([ask], stopping)
            assert [stopped] == await local.write([ask], stopping)
            assert stopped.ended_by == "stop"
            assert stopped.text == piece.text[: piece.text.index(stop)]


async def test_one_token_to_choose_from_is_the_likeliest(
    vllm: VllmServer, version: ModelVersion
) -> None:
    ids = ChatTokenizer(version.folder).encode_markup("<|im_start|>user\nWhat?<|im_end|>\n")
    asks = [Ask(ids=ids[: 3 + n], seed=n, max_tokens=20) for n in range(4)]
    local = LocalVerdicts(version)
    greedy = await local.write(asks, Style(temperature=0.0, top_p=1.0, top_k=0, stop=()))
    only_one = Style(temperature=2.0, top_p=1.0, top_k=1, stop=())
    assert await local.write(asks, only_one) == greedy
    async with verdicts(vllm, version) as model:
        there = await model.write(asks, only_one)
    assert there == [replace(piece, text=piece.text.rstrip("\ufffd")) for piece in greedy]


async def test_greedy_scores_are_those_of_the_engine(
    vllm: VllmServer, version: ModelVersion
) -> None:
    here = (await GenerativeScorer(version, LocalVerdicts(version)).score(ITEMS)).items
    async with verdicts(vllm, version) as model:
        there = (await GenerativeScorer(version, model).score(ITEMS)).items
    for ours, theirs in zip(here, there, strict=True):
        assert [step.raw for step in theirs.step_scores] == pytest.approx(
            [step.raw for step in ours.step_scores], abs=TOLERANCE
        )
        assert theirs.generated_tokens == ours.generated_tokens


async def test_sampled_scores_repeat(vllm: VllmServer, sampled: ModelVersion) -> None:
    async with verdicts(vllm, sampled) as model:
        scorer = GenerativeScorer(sampled, model)
        first, again = [(await scorer.score(ITEMS)).items for _ in range(2)]
    for one, other in zip(first, again, strict=True):
        assert [step.raw for step in one.step_scores] == pytest.approx(
            [step.raw for step in other.step_scores], abs=TOLERANCE
        )
        assert one.generated_tokens == other.generated_tokens > 0


async def test_golden_scores_must_come_out_there(vllm: VllmServer, tmp_path: Path) -> None:
    version = publish_generative(tmp_path, NAME, RECIPE, context=CONTEXT)
    async with verdicts(vllm, version) as model:
        await GenerativeScorer(version, VerdictGate(version, model)).score(ITEMS)
    set_recipe(version, decision_temperature=3.0)
    changed = read_version(version.folder)
    async with verdicts(vllm, changed) as model:
        with pytest.raises(Unavailable, match="does not serve what was published"):
            await GenerativeScorer(changed, VerdictGate(changed, model)).score(ITEMS)


async def test_a_server_scores_with_it_over_http(
    vllm: VllmServer, root: Path, version: ModelVersion
) -> None:
    (expected,) = (
        await GenerativeScorer(version, LocalVerdicts(version)).score([trajectory()])
    ).items
    with (
        rung_serve(
            root,
            RUNG_SCORING_URLS=f'{{"{NAME}": "{vllm.url}"}}',
            RUNG_SCORING_API_KEY=vllm.api_key,
        ) as running,
        httpx2.Client(base_url=running.url, timeout=120) as client,
    ):
        body = {
            "model": NAME,
            "items": [{"problem": PROBLEM, "steps": list(STEPS)}],
            "include": ["raw"],
        }
        response = client.post("/v1/prm/score", json=body)
    assert response.status_code == 200, response.text
    (item,) = response.json()["data"]
    assert [step["raw"] for step in item["steps"]] == pytest.approx(
        [step.raw for step in expected.step_scores], abs=TOLERANCE
    )
