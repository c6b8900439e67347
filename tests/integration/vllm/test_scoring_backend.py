"""Scores computed by real vLLM servers are those of transformers, and of the models' publisher."""

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    Qwen2Config,
    Qwen2ForTokenClassification,
    Qwen2Model,
)

from prm.backends.golden_gate import GoldenGate
from prm.backends.vllm import VllmBackend, VllmModel
from prm.errors import InvalidInput, Unavailable
from prm.families.base import HeadRead, LogprobRead, Read
from prm.manifest import ModelVersion
from prm.scorer import Scorer
from prm.steps import join_steps
from prm.types import Trajectory
from server.settings import BUNDLED_MODELS
from tests.factories import user
from tests.integration.vllm.conftest import PolicyServer, ServedFolder, VllmServer, running_vllm
from tests.server.conftest import rung_serve
from training.tokenizer import VOCAB_SIZE, save_tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.anyio]

# Both compute in float32. Seen: 9e-5 per log-prob of the bundled models, 5e-6 per logit of a head.
TOLERANCE = 1e-3
CONTEXT = 256
CLASSES = 3
MARKER = 200
# The two ids of a label read, far apart in any trained model: a digit and the end of a turn.
LABELS = (0x35, 256)
TEXT = b"Evaluate (3+4)*2-5\n3+4=7\n7*2=14\n14-5=9\nAnswer: 9\n"
WRITTEN = ("3+4=7\n7*2=14\n14-5=9\nAnswer: 9\n", "3+4=8\n8*2=16\nAnswer: 11\n", "9\n")


@dataclass(frozen=True, kw_only=True)
class Served:
    """The servers that score, and the two models with heads as transformers runs them."""

    prm: VllmServer
    classifier: VllmServer
    process_reward: VllmServer
    classifier_model: Qwen2ForTokenClassification
    process_reward_body: Qwen2Model
    process_reward_head: torch.nn.Sequential


@pytest.fixture(scope="session")
def served(prm_version: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folders = tmp_path_factory.mktemp("heads")
    torch.manual_seed(0)
    classifier_model = _token_classifier(folders / "classifier")
    body, head = _process_reward(folders / "process-reward")
    models = [
        ServedFolder(name=prm_version.manifest.name, folder=prm_version.folder),
        ServedFolder(name="classifier", folder=folders / "classifier"),
        ServedFolder(
            name="process-reward",
            folder=folders / "process-reward",
            flags=('--pooler-config={"tok_pooling_type": "ALL"}',),
        ),
    ]
    with running_vllm(models, tmp_path_factory.mktemp("logs")) as (prm, classifier, process_reward):
        yield Served(
            prm=prm,
            classifier=classifier,
            process_reward=process_reward,
            classifier_model=classifier_model,
            process_reward_body=body,
            process_reward_head=head,
        )


@pytest.fixture
def models(
    served: Served,
    vllm: PolicyServer,
    prm_version: ModelVersion,
    policy_version: ModelVersion,
) -> dict[str, VllmModel]:
    """Where each model is served, by its key."""
    return {
        prm_version.key: _at(served.prm),
        policy_version.key: _at(vllm),
        "classifier": _at(served.classifier),
        "process-reward": _at(served.process_reward),
    }


@pytest.fixture
async def backend(models: dict[str, VllmModel], anyio_backend: str) -> AsyncIterator[VllmBackend]:
    async with closing(models) as backend:
        yield backend


@asynccontextmanager
async def closing(models: Mapping[str, VllmModel]) -> AsyncIterator[VllmBackend]:
    backend = VllmBackend(models)
    try:
        yield backend
    finally:
        await backend.aclose()


def logits(version: ModelVersion, ids: Sequence[int]) -> torch.Tensor:
    """Float32 logits [len(ids), vocabulary] by transformers."""
    model = AutoModelForCausalLM.from_pretrained(version.folder, dtype=torch.float32)
    with torch.inference_mode():
        return torch.as_tensor(model(torch.tensor([ids])).logits[0])


def ragged(count: int, seed: int) -> list[tuple[int, ...]]:
    """Texts of 1 to 255 bytes, two of them equal."""
    lengths = random.Random(seed)
    texts = [tuple((TEXT * 6)[: lengths.randrange(1, 255)]) for _ in range(count - 1)]
    return [*texts, texts[0]]


async def values(backend: VllmBackend, reads: Sequence[Read]) -> list[torch.Tensor]:
    reply = await backend.read(reads)
    assert len(reply.outputs) == len(reads)
    assert reply.queue_ms >= 0
    assert reply.inference_ms > 0
    return [torch.tensor(output.values, dtype=torch.float64) for output in reply.outputs]


async def test_log_probs_are_those_of_transformers(
    backend: VllmBackend, prm_version: ModelVersion, policy_version: ModelVersion
) -> None:
    for version in (prm_version, policy_version):
        texts = [tuple((TEXT * 11)[:511]), *ragged(12, seed=1)]
        reads = [
            LogprobRead(model=version.key, ids=ids, first=min(1 + number, len(ids)))
            for number, ids in enumerate(texts)
        ]
        for read, found in zip(reads, await values(backend, reads), strict=True):
            known = logits(version, read.ids).log_softmax(-1)[read.first - 1 : -1]
            targets = torch.tensor(read.ids[read.first :], dtype=torch.long)
            expected = known.gather(1, targets[:, None])[:, 0].double()
            torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


async def test_labels_differ_as_the_logits_do(
    backend: VllmBackend, policy_version: ModelVersion
) -> None:
    reads = []
    for ids in [*ragged(6, seed=2), tuple((TEXT * 11)[:511])]:
        ends = tuple(place for place, byte in enumerate(ids) if byte == 10)
        positions = tuple(sorted({*ends, len(ids) - 1}))
        reads.append(
            HeadRead(model=policy_version.key, ids=ids, positions=positions, width=2, labels=LABELS)
        )
    # The second time the server's prefix cache has all of it.
    for _ in range(2):
        for read, found in zip(reads, await values(backend, reads), strict=True):
            first, second = found.view(-1, 2).T
            whole = logits(policy_version, read.ids)[list(read.positions)].double()
            expected = whole[:, LABELS[0]] - whole[:, LABELS[1]]
            torch.testing.assert_close(first - second, expected, atol=TOLERANCE, rtol=0)


async def test_heads_say_what_transformers_says(backend: VllmBackend, served: Served) -> None:
    body, head = served.process_reward_body, served.process_reward_head
    for ids in [tuple((TEXT * 6)[:CONTEXT]), *ragged(8, seed=3)]:
        positions = tuple(sorted({0, len(ids) // 2, len(ids) - 1}))
        read = HeadRead(model="classifier", ids=ids, positions=positions, width=CLASSES)
        reads = [read, replace(read, model="process-reward", width=2)]
        classified, rewarded = await values(backend, reads)
        with torch.inference_mode():
            classes = served.classifier_model(torch.tensor([ids])).logits[0, list(positions)]
            rewards = head(body(torch.tensor([ids])).last_hidden_state[0, list(positions)])
        torch.testing.assert_close(classified, classes.double().flatten(), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(rewarded, rewards.double().flatten(), atol=TOLERANCE, rtol=0)


async def test_scores_are_those_that_the_publisher_computed(
    backend: VllmBackend, prm_version: ModelVersion
) -> None:
    golden = prm_version.manifest.golden
    trajectories = []
    for item in golden:
        response, steps = join_steps(item.steps, prm_version.manifest.step_separator)
        trajectories.append(Trajectory(messages=item.messages, response=response, steps=steps))
    scorer = Scorer(prm_version, GoldenGate(prm_version, backend))
    batch = await scorer.score(trajectories)
    for item, scored in zip(golden, batch.items, strict=True):
        raw = [step.raw for step in scored.step_scores]
        assert raw == pytest.approx(item.raw, abs=TOLERANCE)
        assert scored.cached_tokens == 0
        assert scored.scored_tokens == 2 * scored.prompt_tokens
    for trajectory, scored in zip(trajectories, batch.items, strict=True):
        (alone,) = (await scorer.score([trajectory])).items
        assert [s.raw for s in alone.step_scores] == pytest.approx(
            [s.raw for s in scored.step_scores], abs=1e-5
        )


async def test_what_was_not_published_is_not_served(
    prm_version: ModelVersion, policy_version: ModelVersion, models: dict[str, VllmModel]
) -> None:
    response, steps = join_steps(["1+1=2", "Answer: 2"], prm_version.manifest.step_separator)
    trajectory = Trajectory(messages=user("Evaluate 1+1"), response=response, steps=steps)
    swapped = models | {prm_version.key: models[policy_version.key]}
    async with closing(swapped) as backend:
        # The scorer alone would believe it: all log-ratios are 0, and 0 is a score.
        (believed,) = (await Scorer(prm_version, backend).score([trajectory])).items
        assert [step.raw for step in believed.step_scores] == [0.0, 0.0]
        with pytest.raises(Unavailable, match=r"golden score 0, .* it does not serve what was"):
            await Scorer(prm_version, GoldenGate(prm_version, backend)).score([trajectory])


async def test_many_readers_at_once_change_nothing(
    backend: VllmBackend, prm_version: ModelVersion
) -> None:
    # vLLM reuses its buffers from step to step; requests that overlap must not see each other's.
    texts = ragged(24, seed=4)
    reads = [LogprobRead(model=prm_version.key, ids=ids, first=1) for ids in texts]
    alone = [(await values(backend, [read]))[0] for read in reads]
    order = random.Random(5)
    for _ in range(15):
        places = order.sample(range(len(reads)), len(reads))
        groups = [places[start::6] for start in range(6)]
        found = await asyncio.gather(
            *(values(backend, [reads[place] for place in group]) for group in groups)
        )
        for group, outputs in zip(groups, found, strict=True):
            for place, output in zip(group, outputs, strict=True):
                torch.testing.assert_close(output, alone[place], atol=1e-5, rtol=0)


async def test_what_does_not_fit_is_refused_with_its_numbers(
    backend: VllmBackend, prm_version: ModelVersion
) -> None:
    whole = LogprobRead(model=prm_version.key, ids=(10,) * 512, first=1)
    with pytest.raises(InvalidInput, match=r"an item is 512 tokens long, .* reads at most 511"):
        await backend.read([whole])
    read = HeadRead(model="classifier", ids=(10,) * (CONTEXT + 1), positions=(0,), width=CLASSES)
    with pytest.raises(InvalidInput, match=r"an item is 257 tokens long, .* reads at most 256"):
        await backend.read([read])


async def test_a_server_that_was_started_otherwise_is_named(
    backend: VllmBackend, prm_version: ModelVersion, served: Served
) -> None:
    ids = tuple(TEXT)
    head = HeadRead(model="classifier", ids=ids, positions=(3,), width=2)
    with pytest.raises(Unavailable, match=r"returned 3 numbers per token, where .* has 2"):
        await backend.read([head])
    with pytest.raises(Unavailable, match="a server that pools"):
        await backend.read([replace(head, model=prm_version.key)])
    with pytest.raises(Unavailable, match="a server that pools"):
        await backend.read([LogprobRead(model="classifier", ids=ids, first=1)])
    outside = LogprobRead(model=prm_version.key, ids=(1, 10**6), first=1)
    with pytest.raises(Unavailable, match=r"refuses \(status 400\): .*out of vocabulary"):
        await backend.read([outside])
    other = replace(_at(served.prm), name="other")
    async with closing({"x": other}) as wrong:
        with pytest.raises(Unavailable, match=f"not serve 'other'; it serves {served.prm.model}"):
            await wrong.read([replace(outside, model="x")])


async def test_a_server_that_does_not_answer_is_unavailable(served: Served) -> None:
    read = LogprobRead(model="x", ids=(1, 2), first=1)
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unheard.getsockname()[1]}"
        gone = VllmModel(url=f"http://{address}", name="x", api_key="sk-not-told")
        async with closing({"x": gone}) as backend:
            with pytest.raises(Unavailable, match=f"the vLLM server at {address} does not answer"):
                await backend.read([read])
    refused = replace(_at(served.prm), api_key="sk-not-told")
    async with closing({"x": refused}) as backend:
        with pytest.raises(Unavailable, match="refuses this server's key") as error:
            await backend.read([read])
        assert "sk-not-told" not in str(error.value) + repr(refused)


def test_rung_serves_the_same_scores_from_vllm(served: Served, vllm: PolicyServer) -> None:
    request = {
        "model": served.prm.model,
        "items": [{"problem": "Evaluate (3+4)*2-5", "response": text} for text in WRITTEN],
        "include": ["raw"],
    }
    urls = json.dumps({served.prm.model: served.prm.url, vllm.model: vllm.url})
    with rung_serve(BUNDLED_MODELS) as local:
        ours = httpx2.post(f"{local.url}/v1/prm/score", json=request, timeout=60).json()
    with rung_serve(
        BUNDLED_MODELS, RUNG_SCORING_URLS=urls, RUNG_SCORING_API_KEY=vllm.api_key
    ) as remote:
        theirs = httpx2.post(f"{remote.url}/v1/prm/score", json=request, timeout=60).json()
    for mine, other in zip(ours["data"], theirs["data"], strict=True):
        assert [s["raw"] for s in mine["steps"]] == pytest.approx(
            [s["raw"] for s in other["steps"]], abs=TOLERANCE
        )


def _at(server: VllmServer) -> VllmModel:
    return VllmModel(url=server.url, name=server.model, api_key=server.api_key)


def _config(labels: int) -> Qwen2Config:
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=128,
        max_position_embeddings=CONTEXT,
        # Wide, so that wrong positions and wrong heads are far off.
        initializer_range=0.2,
        tie_word_embeddings=False,
        dtype="float32",
    )
    config.num_labels = labels
    return config


def _token_classifier(folder: Path) -> Qwen2ForTokenClassification:
    model: Qwen2ForTokenClassification = Qwen2ForTokenClassification(_config(CLASSES))  # type: ignore[no-untyped-call]
    model.train(False)
    torch.nn.init.normal_(model.score.bias)
    model.save_pretrained(folder)
    save_tokenizer(folder, context_limit=CONTEXT)
    return model


def _process_reward(folder: Path) -> tuple[Qwen2Model, torch.nn.Sequential]:
    """As Qwen2.5-Math-PRM lies on disk: a Qwen2 body and a head of two layers."""
    config = _config(2)
    config.architectures = ["Qwen2ForProcessRewardModel"]
    body = Qwen2Model(config)
    body.train(False)
    size = config.hidden_size
    head = torch.nn.Sequential(
        torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, 2)
    )
    config.save_pretrained(folder)
    weights = {f"model.{name}": tensor.contiguous() for name, tensor in body.state_dict().items()}
    weights |= {f"score.{name}": tensor for name, tensor in head.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    save_tokenizer(folder, context_limit=CONTEXT)
    return body, head
