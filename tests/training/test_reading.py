"""Precision and activation checkpointing: what they change, and what they may not."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.data import Example
from training.events import read_events
from training.models import TrainedLM
from training.run import run_job
from training.spec import Precision, TrainingJob

VOCABULARY = 13
NUMERICS: list[tuple[Precision, bool]] = [
    ("float32", False),
    ("float32", True),
    ("bfloat16", False),
    ("bfloat16", True),
]


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    rng = random.Random(0)
    return [
        Example(ids=tuple(rng.randrange(VOCABULARY) for _ in range(5 + size)), first=5)
        for size in (1, 4, 9, 12, 20)
    ]


def load(policy: Path, precision: Precision, is_checkpointed: bool) -> TrainedLM:
    return TrainedLM.load(policy, precision=precision, activation_checkpointing=is_checkpointed)


def gradients(model: TrainedLM, examples: list[Example]) -> Tensor:
    loss = model.logprobs(examples).square().sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters)])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activation_checkpointing_changes_no_gradient_and_keeps_less(
    policy: Path, examples: list[Example], precision: Precision
) -> None:
    plain, checkpointed = (load(policy, precision, flag) for flag in (False, True))
    assert kept_numbers(checkpointed, examples) < 0.6 * kept_numbers(plain, examples)
    ours, wanted = gradients(checkpointed, examples), gradients(plain, examples)
    assert wanted.abs().max() > 1e-2
    torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=0)


def kept_numbers(model: TrainedLM, examples: list[Example]) -> int:
    """What a forward keeps for its backward, of other tensors than the weights."""
    weights = {weight.data_ptr() for weight in model.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.logprobs(examples)
    return sum(kept.values())


def test_bfloat16_multiplies_in_bfloat16_and_keeps_weights_and_log_probs_in_float32(
    policy: Path, examples: list[Example]
) -> None:
    exact, rounded = (load(policy, precision, False) for precision in ("float32", "bfloat16"))
    with torch.no_grad():
        wanted, found = exact.logprobs(examples), rounded.logprobs(examples)
    assert found.dtype == torch.float32
    assert {weight.dtype for weight in rounded.parameters} == {torch.float32}
    assert 1e-5 < float((found - wanted).abs().max()) < 0.2
    ours, theirs = gradients(rounded, examples), gradients(exact, examples)
    assert ours.dtype == torch.float32
    assert float((ours - theirs).norm() / theirs.norm()) < 0.05


@pytest.mark.parametrize(("precision", "is_checkpointed"), NUMERICS)
def test_no_tensor_of_tokens_by_vocabulary_is_kept(
    policy: Path,
    examples: list[Example],
    precision: Precision,
    is_checkpointed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.token_logprobs.ENTROPY_ENTRIES", 4 * VOCABULARY)
    model = load(policy, precision, is_checkpointed)
    shapes: list[tuple[int, ...]] = []

    def see(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        model.forward(examples, with_entropies=True)
    assert shapes
    assert not [shape for shape in shapes if len(shape) > 1 and shape[-1] == VOCABULARY]


def test_a_run_in_bfloat16_takes_its_old_log_probs_from_the_trainer(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    run_job(job_of({"type": "grpo"}, precision="bfloat16"), tmp_path / "run")
    steps = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["kind"] == "step"]
    for event in steps:
        assert event["seconds_old_logprobs"] > 0
        assert event["policy_ratio"] == pytest.approx(1.0, abs=1e-6)
        assert event["policy_importance"] == pytest.approx(1.0, abs=0.05)
        assert event["policy_importance"] != 1.0


def test_what_only_costs_memory_may_change_when_a_run_goes_on(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    run_job(job_of({"type": "grpo"}), tmp_path / "run")
    smaller = {"optimizer": {"lr": 1e-3, "micro_tokens": 64}, "activation_checkpointing": True}
    run_job(job_of({"type": "grpo"}, **smaller), tmp_path / "run", resume=True)
