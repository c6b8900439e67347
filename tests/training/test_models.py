"""A model that trains and is sampled from: one set of weights, and the same numbers."""

import random
from pathlib import Path

import pytest
import torch

from prm.chat import ChatTokenizer
from prm.engine.sampler import Sampler, SamplingParams
from prm.errors import ModelFolderError
from training.checkpoints import ModelSize, load_model, new_model, save_model
from training.data import Example, collate
from training.logprobs import response_logprobs
from training.models import TrainedLM, response_mask

SIZE = ModelSize(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(new_model(SIZE, seed=0), path)
    return path


@pytest.fixture
def model(folder: Path) -> TrainedLM:
    return TrainedLM.load(folder)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Prompts and responses of all lengths, down to a prompt and a response of one token."""
    rng = random.Random(0)
    shapes = [(5, 9), (1, 1), (12, 3), (2, 30), (7, 7)]
    return [
        Example(ids=tuple(rng.randrange(256) for _ in range(first + length)), first=first)
        for first, length in shapes
    ]


def test_log_probs_are_the_engines_to_the_last_bit(
    model: TrainedLM, examples: list[Example]
) -> None:
    found = model.logprobs(examples)
    theirs = model.engine.logprobs([e.ids for e in examples], [e.first for e in examples])
    for row, mask, wanted in zip(found, response_mask(examples), theirs, strict=True):
        assert torch.equal(row[mask].detach(), wanted)


def test_values_and_gradients_are_those_of_a_padded_forward(
    model: TrainedLM, folder: Path, examples: list[Example]
) -> None:
    batch = collate(examples)
    weights = torch.randn(batch.ids.shape, generator=torch.Generator().manual_seed(1))
    plain = load_model(folder)
    padded = response_logprobs(plain, batch)
    wanted = torch.autograd.grad(
        (padded * weights)[batch.is_target].sum(), list(plain.parameters())
    )
    mask = response_mask(examples)
    packed = model.logprobs(examples)
    found = torch.autograd.grad((packed[mask] * weights[batch.is_target]).sum(), model.parameters)
    torch.testing.assert_close(packed[mask], padded[batch.is_target], atol=1e-5, rtol=0)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_neighbours_and_their_order_change_nothing(
    model: TrainedLM, examples: list[Example]
) -> None:
    together = model.logprobs(examples)
    turned = model.logprobs(examples[::-1]).flip(0)
    torch.testing.assert_close(together, turned, atol=1e-5, rtol=0)
    for row, example in zip(together, examples, strict=True):
        alone = model.logprobs([example])[0]
        torch.testing.assert_close(row[: len(alone)], alone, atol=1e-5, rtol=0)
        assert not row[len(alone) :].any()


def test_an_optimizer_step_is_seen_by_the_next_sample_without_a_copy(
    model: TrainedLM, folder: Path
) -> None:
    tokenizer = ChatTokenizer(folder)
    params = SamplingParams(temperature=0.0, max_tokens=6)
    prompt = tuple(b"ab")
    (before,) = Sampler(model.engine, tokenizer).generate([prompt], params, [0])
    # Teach it to write one letter and nothing else.
    taught = Example(ids=(*prompt, *b"zzzzzz"), first=2)
    optimizer = torch.optim.AdamW(model.parameters, lr=0.01)
    for _ in range(30):
        torch.autograd.backward(-model.logprobs([taught]).sum())
        optimizer.step()
        optimizer.zero_grad()
    (after,) = Sampler(model.engine, tokenizer).generate([prompt], params, [0])
    assert before.text != "zzzzzz"
    assert after.text == "zzzzzz"


def test_a_frozen_model_has_nothing_to_train(model: TrainedLM, examples: list[Example]) -> None:
    assert model.parameters
    assert model.freeze().parameters == []
    assert not model.logprobs(examples).requires_grad


def test_a_folder_that_is_no_causal_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "num_hidden_layers": 1}')
    with pytest.raises((ModelFolderError, OSError)):
        TrainedLM.load(tmp_path)
