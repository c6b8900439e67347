"""Batches, log-probabilities and the optimiser, on models small enough to check in full."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from prm.chat import ChatTokenizer
from prm.engine.model import CausalLM
from training.algorithms.implicit_prm import implicit_prm_loss, sequence_log_ratio
from training.algorithms.sft import sft_loss
from training.checkpoints import ModelSize, load_model, new_model, save_model
from training.data import Batch, Example, batches, collate, encode_example
from training.logprobs import response_logprobs
from training.optimizer import OptimizerSettings, fit, schedule
from training.tasks.arithmetic import SEPARATOR, problems
from training.tasks.slips import write_solution
from training.tokenizer import END_ID

TINY = ModelSize(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=32,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    save_model(new_model(TINY, seed=0), path)
    return path


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    return load_model(folder)


@pytest.fixture(scope="module")
def examples(folder: Path) -> list[Example]:
    tokenizer, rng = ChatTokenizer(folder), random.Random(0)
    return [
        encode_example(
            tokenizer,
            problem,
            SEPARATOR.join(write_solution(problem, rng, 0.5)),
            label=float(number % 2),
        )
        for number, problem in enumerate(problems(0, 40, "train"))
    ]


def test_an_example_is_the_prompt_the_response_and_the_end(folder: Path) -> None:
    (problem,) = problems(0, 1, "train")
    example = encode_example(ChatTokenizer(folder), problem, "3+4=7")
    assert example.ids[: example.first] == (257, *problem.text.encode(), 256, 258)
    assert example.ids[example.first :] == (*b"3+4=7", END_ID)


def test_padded_log_probs_are_those_of_each_example_alone(
    model: PreTrainedModel, examples: list[Example]
) -> None:
    with torch.no_grad():
        together = response_logprobs(model, collate(examples[:5]))
        for row, example in enumerate(examples[:5]):
            alone = response_logprobs(model, collate([example]))[0]
            torch.testing.assert_close(together[row, : len(example.ids)], alone)
            assert not together[row, len(example.ids) :].any()


def test_log_probs_are_the_softmax_of_all_logits(
    model: PreTrainedModel, examples: list[Example]
) -> None:
    example = examples[0]
    ids = torch.tensor([example.ids])
    with torch.no_grad():
        ours = response_logprobs(model, collate([example]))[0]
        table = model(input_ids=ids).logits[0].log_softmax(-1)
    for place in range(len(example.ids)):
        wanted = table[place - 1, example.ids[place]] if place >= example.first else 0.0
        assert ours[place].item() == pytest.approx(float(wanted), abs=1e-5)


def test_training_and_the_engine_read_the_same_log_probs(
    folder: Path, model: PreTrainedModel, examples: list[Example]
) -> None:
    with torch.no_grad():
        ours = response_logprobs(model, collate(examples[:4]))
    theirs = CausalLM.load(folder, device="cpu", dtype=torch.float32).logprobs(
        [example.ids for example in examples[:4]], [example.first for example in examples[:4]]
    )
    for row, (example, engine) in enumerate(zip(examples[:4], theirs, strict=True)):
        torch.testing.assert_close(
            ours[row, example.first : len(example.ids)], engine.clone(), atol=1e-5, rtol=1e-5
        )


def test_a_pass_sees_every_example_once(examples: list[Example]) -> None:
    seen = [
        tuple(row[row != 0].tolist()) for batch in batches(examples, 8, seed=0) for row in batch.ids
    ]
    assert sorted(seen) == sorted(example.ids for example in examples)


def test_the_same_seed_gives_the_same_batches(examples: list[Example]) -> None:
    first, again, other = (
        [batch.ids.tolist() for batch in batches(examples, 8, seed=seed)] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_sft_lowers_its_loss(model: PreTrainedModel, examples: list[Example]) -> None:
    losses: list[float] = []
    fit(
        model,
        [collate(examples)] * 15,
        lambda batch: sft_loss(response_logprobs(model, batch), batch.is_target),
        OptimizerSettings(lr=1e-2),
        num_steps=15,
        on_step=lambda step, loss: losses.append(loss),
    )
    assert losses[-1] < 0.9 * losses[0]
    assert not model.training


def test_the_prm_learns_to_tell_labels_apart(
    model: PreTrainedModel, examples: list[Example]
) -> None:
    batch = collate(examples)
    with torch.no_grad():
        batch = replace(batch, reference_logprobs=response_logprobs(model, batch).sum(-1))
    losses: list[float] = []

    def loss_of(batch: Batch) -> torch.Tensor:
        logprobs = response_logprobs(model, batch)
        ratio = sequence_log_ratio(logprobs, batch.is_target, batch.reference_logprobs)
        return implicit_prm_loss(ratio, batch.labels, beta=0.5)

    fit(
        model,
        [batch] * 30,
        loss_of,
        OptimizerSettings(lr=1e-2),
        num_steps=30,
        on_step=lambda step, loss: losses.append(loss),
    )
    assert losses[0] == pytest.approx(0.6931, abs=1e-4)
    assert min(losses) < 0.6


def test_the_schedule_rises_and_falls() -> None:
    rates = [schedule(step / 20, 0.1) for step in range(21)]
    assert rates[0] == 0.0
    assert max(rates) == rates[2] == 1.0
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.0)


def test_the_same_seed_gives_the_same_weights() -> None:
    first, again = new_model(TINY, seed=3), new_model(TINY, seed=3)
    for ours, theirs in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
