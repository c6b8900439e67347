"""Adapters that train: on one base, alone in checkpoints, and as peft and the engine read them."""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prm.chat import ChatTokenizer
from prm.engine.lora import BaseLM
from prm.engine.model import CausalLM
from prm.errors import InvalidInput
from prm.importing import Asked
from prm.manifest import PrmManifest
from prm.registry import load_version
from tests.imports import imported
from tests.training.jobs import kill_run, written
from training.assembly import Run, assemble
from training.data import Example
from training.events import Events
from training.held_out import ResponseReader, step_rewards
from training.loop import OnlineTraining
from training.models import TrainedLM
from training.rollout_batch import RolloutBatch
from training.run import CHECKPOINTS, run_job
from training.served import GOLDEN
from training.spec import TrainingJob
from training.state import last_checkpoint
from training.tasks.running_sum import RunningSum

ADAPTER = {"rank": 4, "alpha": 8}
BOTH = {"adapter": ADAPTER, "prm_adapter": {"rank": 2, "alpha": 4, "target_modules": ["q_proj"]}}
PRIME = {"type": "prime", "beta": 0.5, "filter": {"low": 0, "high": 1}}
EXAMPLE = Example(ids=(1, 2, 3, 4, 5, 6), first=2)


def online(job: TrainingJob, out: Path) -> tuple[Run, OnlineTraining]:
    run = assemble(job, Events([]), out, ExitStack())
    assert isinstance(run.training, OnlineTraining)
    return run, run.training


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(TrainedLM.load(folder).model.state_dict())


def test_policy_prm_and_reference_are_one_base_and_what_trains_is_the_adapters(
    job_of: Callable[..., TrainingJob], policy: Path, tmp_path: Path
) -> None:
    run, training = online(job_of(PRIME, **BOTH), tmp_path)
    learners = training.learners
    assert run.reference is not None
    models = [learners["policy"].model, learners["prm"].model, run.reference]
    assert len({id(model.model) for model in models}) == 1
    with torch.no_grad():
        plain = TrainedLM.load(policy).logprobs([EXAMPLE])
        assert all(torch.equal(model.logprobs([EXAMPLE]), plain) for model in models)
    base = {n: w.clone() for n, w in models[0].model.named_parameters() if ".lora_" not in n}
    for number in (1, 2):
        training.step(number)
    with torch.no_grad():
        found = [model.logprobs([EXAMPLE]) for model in models]
    assert torch.equal(found[2], plain)
    assert not torch.allclose(found[0], plain, atol=1e-4)
    assert not torch.allclose(found[1], plain, atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-4)
    after = dict(models[0].model.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in base.items())
    names = [set(learner.weights) for learner in learners.values()]
    assert not names[0] & names[1]
    assert {".".join(name.split(".")[-3:-1]) for name in names[1]} == {"lora_A.prm", "lora_B.prm"}


def test_what_an_adapter_wrote_is_on_policy(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    _, training = online(job_of({"type": "grpo"}, adapter=ADAPTER), tmp_path)
    for number in (1, 2):
        training.step(number)
    written = training.writer.write(
        training.problems.draw(3, 0), seed="x", policy_step=2, per_problem=3
    )
    batch = RolloutBatch.of(written)
    with torch.no_grad():
        exact = training.policy.model.logprobs(batch.examples)
    torch.testing.assert_close(batch.sampler_logprobs, exact, atol=2e-5, rtol=0)


def test_what_is_saved_is_read_by_peft_by_the_engine_and_merged(
    job_of: Callable[..., TrainingJob], policy: Path, tmp_path: Path
) -> None:
    done = run_job(job_of(PRIME, **BOTH), tmp_path / "run")
    ids = list(EXAMPLE.ids)
    for name, folder in done.models.items():
        alone = tmp_path / "run" / f"{name}-adapter"
        assert sorted(path.name for path in alone.iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        (merged,) = CausalLM.load(folder).logprobs([ids], [2])
        (adapted,) = BaseLM.load(policy).attach(alone).logprobs([ids], [2])
        (plain,) = CausalLM.load(policy).logprobs([ids], [2])
        torch.testing.assert_close(adapted, merged, atol=1e-5, rtol=0)
        assert not torch.allclose(adapted, plain, atol=1e-4)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy), alone)
            logits = theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
        read = torch.stack([logits[t - 1, ids[t]] for t in range(2, len(ids))])
        torch.testing.assert_close(adapted, read, atol=1e-4, rtol=0)


@pytest.mark.parametrize("algorithm", [{"type": "grpo", "kl_coefficient": 0.01}, PRIME])
def test_a_resumed_run_of_adapters_is_an_uninterrupted_one_to_the_last_bit(
    algorithm: dict[str, Any], job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    adapters = BOTH if algorithm is PRIME else {"adapter": ADAPTER}
    job = job_of(algorithm, steps=5, **adapters)
    whole = run_job(job, tmp_path / "whole")
    kill_run(job, tmp_path / "cut", after_step=3)
    checkpoint = last_checkpoint(tmp_path / "cut" / CHECKPOINTS)
    assert checkpoint is not None
    kept = load_file(checkpoint / "policy.safetensors")
    assert all(".lora_" in name for name in kept)
    resumed = run_job(job, tmp_path / "cut", resume=True)
    for name, folder in whole.models.items():
        ours, theirs = weights_of(resumed.models[name]), weights_of(folder)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.slow
def test_an_adapter_of_a_run_is_imported_on_its_published_base(
    job_of: Callable[..., TrainingJob], policy: Path, tmp_path: Path
) -> None:
    job = job_of({"type": "implicit_prm", "beta": 0.5}, prm_adapter=ADAPTER, evaluation=False)
    run_job(job, tmp_path / "run")
    root = tmp_path / "models"
    said: dict[str, Any] = {"golden": tmp_path / "run" / GOLDEN, "step_separator": ""}
    imported(policy, root, name="base", is_policy=True, **said)
    asked = Asked(family="implicit", settings={"beta": 0.5})
    imported(
        tmp_path / "run" / "prm-adapter", root, name="prm", asked=asked, reference="base@1", **said
    )
    version = load_version(root / "prm" / "1")
    assert isinstance(version.manifest, PrmManifest)
    assert not (version.folder / "model.safetensors").exists()
    tokenizer, reader = ChatTokenizer(policy), ResponseReader.of_task(RunningSum(digits=(4, 4)))
    models = TrainedLM.load(tmp_path / "run" / "prm"), TrainedLM.load(policy)
    for golden in version.manifest.golden:
        response = written(tokenizer, golden.messages[0].content, "".join(golden.steps))
        ((rewards,),) = step_rewards([[response]], reader, tokenizer, *models)
        assert list(golden.raw) == pytest.approx([0.5 * value for value in rewards], abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"adapter": ADAPTER | {"target_modules": ["c_attn"]}}, r"c_attn.*linear layers are down_"),
        (
            {"adapter": ADAPTER | {"target_modules": ["q_proj", "lm_head"]}},
            "names lm_head: head, e",
        ),
        ({"adapter": ADAPTER | {"target_modules": ["embed_tokens"]}}, "names embed_tokens: head"),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused_with_those_that_can(
    changes: dict[str, Any], problem: str, job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=problem):
        assemble(job_of({"type": "grpo"}, **changes), Events([]), tmp_path, ExitStack())


@pytest.mark.parametrize(
    ("algorithm", "changes", "problem"),
    [
        ({"type": "grpo"}, {"prm_adapter": ADAPTER}, "grpo trains no PRM: leave prm_adapter out"),
        ({"type": "implicit_prm"}, {"adapter": ADAPTER}, "the policy stays as it is in this job"),
        ({"type": "grpo"}, {"adapter": {"target_modules": []}}, "target_modules is empty"),
        ({"type": "sft"}, {"adapter": ADAPTER, "policy": {}}, "a new model's weights are random"),
        (
            {"type": "repirl", "read_out": "head"},
            {"prm_adapter": ADAPTER},
            "prm_adapter: a PRM with a head of its own trains whole",
        ),
    ],
)
def test_adapters_of_what_does_not_train_are_refused(
    algorithm: dict[str, Any],
    changes: dict[str, Any],
    problem: str,
    job_of: Callable[..., TrainingJob],
) -> None:
    with pytest.raises(ValidationError, match=problem):
        job_of(algorithm, **changes)
