"""Whole jobs on models of a few thousand weights: every algorithm, resumed, refused."""

import json
import math
import resource
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prm.errors import InvalidInput
from prm.files import is_out_of_space
from tests.training.jobs import TASK, TINY, kill_run
from training import state
from training.assembly import assemble
from training.checkpoints import ModelSize, new_model, save_model
from training.events import Events, read_events
from training.learner import Diverged, Learner
from training.loop import OnlineTraining
from training.rollout_batch import RolloutBatch
from training.run import CHECKPOINTS, EVENTS, Outcome, run_job
from training.spec import TrainingJob, read_job
from training.tasks.running_sum import RunningSum

STEPS = {"type": "step_bce"}
OUTCOMES: dict[str, Any] = {"type": "implicit_prm"}
LABELLED: dict[str, Any] = {"data": {"type": "labelled", "files": ["labels.jsonl"]}}
FILES: dict[str, Any] = {"data": {"type": "files", "sources": [{"path": "problems.jsonl"}]}}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "rloo": {"type": "rloo"},
    "grpo": {"type": "grpo", "kl_coefficient": 0.01, "entropy_coefficient": 0.001},
    "lambda_grpo": {"type": "lambda_grpo"},
    "prl": {"type": "prl", "eta": 10.0},
    "prl by steps": {"type": "prl", "eta": 10.0, "anchor": "step_start", "step_tokens": 1},
    "a kl in the reward": {"type": "prl", "eta": 10.0, "kl_in": "reward"},
    "prime": {"type": "prime", "beta": 0.5, "filter": {"low": 0, "high": 1}},
    "prime before": {"type": "prime", "beta": 0.5, "update": "before", "reference": "behaviour"},
    "repirl": {"type": "repirl"},
    "repirl by likelihood": {"type": "repirl", "prm_loss": "mle", "estimator": "grpo"},
    "repirl with a head": {"type": "repirl", "read_out": "head"},
    "prime with dpo": {"type": "prime", "prm_loss": "dpo", "estimator": "grpo"},
}
OFFLINE: dict[str, dict[str, Any]] = {
    f"implicit prm by {loss}": {"type": "implicit_prm", "loss": loss, "beta": 0.5}
    for loss in ("ce", "dpo", "kto", "nca")
} | {
    "step bce": {"type": "step_bce"},
    "step bce by log-ratio": {"type": "step_bce", "read_out": "log_ratio", "beta": 0.5},
    "step bce by completions": {"type": "step_bce", "labels": "soft", "continuations": 2},
}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def differences(one: Outcome, other: Outcome) -> dict[str, float]:
    """The largest distance between two runs' weights, by model."""
    assert one.models.keys() == other.models.keys()
    found = {}
    for name in one.models:
        ours, theirs = weights_of(one.models[name]), weights_of(other.models[name])
        found[name] = max(float((ours[key] - theirs[key]).abs().max()) for key in ours)
    return found


@pytest.mark.parametrize("name", [*ALGORITHMS, *OFFLINE])
def test_every_algorithm_runs_and_tells_what_it_did(
    name: str, job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    algorithm = (ALGORITHMS | OFFLINE)[name]
    evaluation = {"every": 2, "problems": 6, "per_problem": 4}
    done = run_job(job_of(algorithm, evaluation=evaluation), tmp_path / "run")
    events = read_events(tmp_path / "run" / EVENTS)
    steps = [event for event in events if event["kind"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3]
    measured = [event for event in events if event["kind"] == "evaluation"]
    assert [event["step"] for event in measured] == [2, 3]
    assert all(0 <= event["average"] <= event["pass"] <= 1 for event in measured)
    trains_prm = algorithm["type"] in ("prime", "implicit_prm", "repirl", "step_bce")
    for event in steps:
        assert 0 <= event["reward"] <= 1
        assert event["seconds_rollouts"] > 0
        if name not in OFFLINE:
            assert 0 < event["entropy"] < math.log(13)
        if trains_prm:
            assert 0 <= event["prm_pair_accuracy"] <= 1
    assert ("prm" in done.models) == trains_prm
    assert ("best_of_n_min" in done.evaluation) == trains_prm
    for folder in done.models.values():
        assert (folder / "tokenizer.json").is_file()
        assert all(weight.isfinite().all() for weight in weights_of(folder).values())


def test_an_inverse_rl_prm_learns_beside_a_policy_that_stays(
    job_of: Callable[..., TrainingJob], policy: Path, tmp_path: Path
) -> None:
    job = job_of({"type": "repirl"}, train_policy=False, demonstrations=2)
    done = run_job(job, tmp_path / "run")
    assert list(done.models) == ["prm"]
    before, after = weights_of(policy), weights_of(done.models["prm"])
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_problems_of_a_file_are_graded_by_their_answers(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    problems = RunningSum(digits=(4, 4)).problems(0, 12, "train")
    lines = [json.dumps({"problem": p.text, "answer": p.answer}) for p in problems]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    source = {"path": tmp_path / "sums.jsonl"}
    data = {"type": "files", "sources": [source], "held_out": [source]}
    job = job_of(
        {"type": "grpo"},
        steps=2,
        data=data,
        rollouts={"problems": 4, "per_problem": 4, "max_tokens": 5},
        evaluation={"every": 2, "problems": 4, "per_problem": 2},
    )
    done = run_job(job, tmp_path / "run")
    assert set(done.evaluation) == {"average", "pass"}
    steps = [e for e in read_events(tmp_path / "run" / EVENTS) if e["kind"] == "step"]
    assert all(event["rollouts"] + event["grading_errors"] == 16 for event in steps)


def test_imitation_then_reinforcement_makes_the_policy_better(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    job = job_of(
        {"type": "rloo"},
        steps=25,
        rollouts={"problems": 32, "per_problem": 8},
        optimizer={"lr": 2e-3},
        evaluation={"every": 25, "problems": 100, "per_problem": 4},
    )
    before = assemble(job, Events([]), tmp_path / "before", ExitStack())
    assert job.evaluation
    at_first = before.evaluate(job.evaluation)["average"]
    assert run_job(job, tmp_path / "run").evaluation["average"] > at_first + 0.15


@pytest.mark.parametrize("name", ["grpo", "prime", "repirl", "implicit prm by dpo", "step bce"])
def test_a_resumed_run_is_an_uninterrupted_one_to_the_last_bit(
    name: str, job_of: Callable[..., TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of((ALGORITHMS | OFFLINE)[name], steps=5)
    whole = run_job(job, tmp_path / "whole")
    kill_run(job, tmp_path / "cut", after_step=3)
    assert state.last_checkpoint(tmp_path / "cut" / CHECKPOINTS) is not None
    resumed = run_job(job, tmp_path / "cut", resume=True)
    assert set(differences(whole, resumed).values()) == {0.0}

    def without_times(folder: Path) -> list[dict[str, Any]]:
        return [
            {n: v for n, v in event.items() if not n.startswith(("seconds", "tokens_per_s"))}
            for event in read_events(folder / EVENTS)
        ]

    assert without_times(tmp_path / "cut") == without_times(tmp_path / "whole")


@pytest.mark.parametrize("name", ["grpo", "lambda_grpo", "prime", "repirl", "implicit prm by nca"])
def test_the_size_of_a_micro_batch_changes_no_gradient(
    name: str, job_of: Callable[..., TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = torch.nn.utils.clip_grad_norm_
    seen: list[torch.Tensor] = []

    def clip_and_see(weights: list[torch.Tensor], most: float) -> torch.Tensor:
        found = [weight.grad.flatten() for weight in weights if weight.grad is not None]
        seen.append(torch.cat(found).clone())
        return clip(weights, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_and_see)

    def gradients(micro_tokens: int) -> list[torch.Tensor]:
        algorithm = (ALGORITHMS | OFFLINE)[name]
        sizes: dict[str, Any] = {"optimizer": {"lr": 1e-3, "micro_tokens": micro_tokens}}
        if algorithm["type"] in ("prime", "repirl"):
            sizes["prm_optimizer"] = {"lr": 1e-3, "micro_tokens": micro_tokens}
        seen.clear()
        run_job(job_of(algorithm, steps=1, **sizes), tmp_path / str(micro_tokens))
        return list(seen)

    whole, pieces = gradients(100_000), gradients(20)
    assert len(whole) == len(pieces) == (2 if name in ("prime", "repirl") else 1)
    for one, other in zip(whole, pieces, strict=True):
        assert float(one.abs().max()) > 1e-3
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def online(job: TrainingJob, out: Path) -> OnlineTraining:
    training = assemble(job, Events([]), out, ExitStack()).training
    assert isinstance(training, OnlineTraining)
    return training


def test_what_was_sampled_is_on_policy(job_of: Callable[..., TrainingJob], tmp_path: Path) -> None:
    training = online(job_of({"type": "rloo"}), tmp_path)
    for number in (1, 2):
        training.step(number)
        written = training.writer.write(
            training.problems.draw(number, 0), seed="x", policy_step=number, per_problem=3
        )
        batch = RolloutBatch.of(written)
        with torch.no_grad():
            exact = training.policy.model.logprobs(batch.examples)
        torch.testing.assert_close(batch.sampler_logprobs, exact, atol=2e-5, rtol=0)


def test_a_temperature_is_in_the_trainers_log_probs_too(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    job = job_of({"type": "rloo"}, rollouts={"problems": 8, "per_problem": 4, "temperature": 0.7})
    told = online(job, tmp_path).step(1)
    assert told["policy_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert told["policy_clipped"] == 0


def test_the_drift_from_the_reference_is_told_where_it_is_asked_for(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    training = online(job_of({"type": "rloo"}, reference_kl_every=2), tmp_path)
    first, second, third = (training.step(number) for number in (1, 2, 3))
    assert not any(name.startswith("reference_kl") for name in first | third)
    assert second["reference_kl_k3_response"] > second["reference_kl_k3"] > 0
    always = online(job_of(ALGORITHMS["prime"]), tmp_path).step(1)
    assert always["reference_kl_k3"] == pytest.approx(0, abs=1e-5)
    assert 0 <= always["prm_first_error_f1"] <= 1


def test_groups_that_teach_nothing_are_dropped_counted_and_made_up_for(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    sizes = {"problems": 12, "per_problem": 2}
    told = online(job_of({"type": "rloo"}, rollouts=sizes), tmp_path).step(1)
    assert told["groups"] == 12
    assert 0 < told["flat_groups"] < 12
    refilled = online(job_of({"type": "rloo"}, rollouts=sizes | {"most_draws": 20}), tmp_path)
    more = refilled.step(1)
    assert more["groups"] > 12
    assert more["groups"] - more["flat_groups"] >= 12
    kept = online(job_of(ALGORITHMS["prl"], rollouts=sizes), tmp_path).step(1)
    assert kept["flat_groups"] == 0
    with_kl = {"type": "rloo", "kl_coefficient": 0.1}
    assert online(job_of(with_kl, rollouts=sizes), tmp_path).step(1)["flat_groups"] == 0


def test_a_step_of_which_nothing_can_be_learnt_changes_no_weight(
    job_of: Callable[..., TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunningSum, "reward", lambda self, problem, response: 1.0)
    training = online(job_of({"type": "rloo"}), tmp_path)
    before = {k: v.clone() for k, v in training.policy.model.model.state_dict().items()}
    told = training.step(1)
    assert told["flat_groups"] == told["groups"] == 8
    assert training.policy.steps == 0
    after = training.policy.model.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_several_minibatches_take_as_many_steps_and_move_off_policy(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    job = job_of({"type": "rloo"}, optimizer={"lr": 1e-2, "minibatches": 4})
    training = online(job, tmp_path)
    told = training.step(1)
    assert training.policy.steps == 4
    assert told["policy_approx_kl_k3"] > 0


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(
    job_of: Callable[..., TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Learner.step

    def spoilt(self: Learner, losses: Any) -> dict[str, float]:
        return plain(self, (loss * (math.nan if self.steps == 3 else 1.0) for loss in losses))

    monkeypatch.setattr(Learner, "step", spoilt)
    job = job_of({"type": "rloo"}, steps=6)
    with pytest.raises(Diverged, match=r"policy, optimizer step 4: the loss is nan; lower its lr"):
        run_job(job, tmp_path / "run")
    kept = state.last_checkpoint(tmp_path / "run" / CHECKPOINTS)
    assert kept is not None
    assert kept.name == "step-00000002"
    monkeypatch.setattr(Learner, "step", plain)
    run_job(job, tmp_path / "run", resume=True)


def test_a_device_without_memory_is_told_with_what_to_lower(
    job_of: Callable[..., TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Learner, losses: Any) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Learner, "step", full)
    with pytest.raises(InvalidInput, match=r"cpu has no memory left; lower optim"):
        run_job(job_of({"type": "rloo"}), tmp_path / "run")


def test_a_reference_of_another_vocabulary_and_a_policy_without_an_end_are_refused(
    job_of: Callable[..., TrainingJob], policy: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    save_model(new_model(ModelSize(**TINY), seed=0), other)
    with pytest.raises(InvalidInput, match=r"reference: it has 261 tokens and the policy 13"):
        run_job(job_of(ALGORITHMS["prl"], reference=other), tmp_path / "run")
    endless = Path(shutil.copytree(policy, tmp_path / "endless"))
    config = json.loads((endless / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (endless / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match="names no end token"):
        run_job(job_of({"type": "rloo"}, policy=endless), tmp_path / "again")


def test_a_full_disk_is_said_and_leaves_the_checkpoint_before_whole(
    job_of: Callable[..., TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()

    def full(tensors: Any, path: Path) -> None:
        calls.append(path.name)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr("training.state.save_file", full)
    with pytest.raises(InvalidInput, match=r"step 2 could not be written .*No space left"):
        run_job(job_of({"type": "rloo"}, checkpoint_every=1, steps=3), tmp_path / "run")
    folder = tmp_path / "run" / CHECKPOINTS
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]


def test_a_checkpoint_that_the_disk_does_not_take_is_told_by_safetensors_too(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for the events, and for no weights.
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(InvalidInput, match=r"step 1 .* File too large") as e:
            run_job(job_of({"type": "rloo"}, checkpoint_every=1, steps=3), tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_out_of_space(e.value)
    assert list((tmp_path / "run" / CHECKPOINTS).iterdir()) == []


def test_a_folder_with_another_run_is_not_touched(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    job = job_of({"type": "rloo"}, steps=1)
    run_job(job, tmp_path / "run")
    with pytest.raises(InvalidInput, match="holds a run already"):
        run_job(job, tmp_path / "run")
    with pytest.raises(InvalidInput, match="the run of another job"):
        run_job(job_of({"type": "grpo"}, steps=1), tmp_path / "run", resume=True)
    with pytest.raises(InvalidInput, match="holds no run"):
        run_job(job, tmp_path / "nothing", resume=True)


def test_a_job_file_is_read_with_paths_relative_to_it(policy: Path, tmp_path: Path) -> None:
    (tmp_path / "policy").symlink_to(policy)
    content = {
        "name": "job",
        "policy": "policy",
        "data": {"type": "task", "task": TASK},
        "algorithm": {"type": "rloo"},
        "optimizer": {"lr": 1e-3},
        "steps": 1,
    }
    (tmp_path / "job.json").write_text(json.dumps(content))
    assert read_job(tmp_path / "job.json").policy == tmp_path / "policy"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"steps": 0}, "steps: .*greater than or equal to 1"),
        ({"stpes": 1}, "stpes: Extra inputs"),
        ({"optimizer": {"lr": 0}}, r"optimizer\.lr: .*greater than 0"),
        ({"algorithm": {"type": "ppo"}}, "algorithm: .*'rloo', 'grpo'"),
        ({"algorithm": {"type": "prl"}}, r"algorithm\.prl\.eta: Field required"),
        ({"rollouts": {"per_problem": 1}}, r"rollouts\.per_problem is 1, and rloo compares"),
        ({"algorithm": {"type": "prime"}}, "prime trains a PRM beside the policy: give prm_opt"),
        ({"prm_optimizer": {"lr": 1e-3}}, "rloo trains no PRM: leave prm_optimizer out"),
        ({"policy": {"hidden_size": 8}}, "rloo begins with a model that can already write"),
        (
            {"data": {"type": "task", "task": {"type": "chess"}}},
            r"data\.task\.task: .*'running_sum'",
        ),
        (FILES, "only a task knows how long its responses are"),
        (FILES | {"rollouts": {"max_tokens": 5}}, "evaluation needs data.held_out"),
        (FILES | {"algorithm": {"type": "repirl"}, "prm_optimizer": {"lr": 1}}, "demonstrations"),
        (
            FILES | {"algorithm": STEPS, "rollouts": {"max_tokens": 5}, "evaluation": False},
            'labels "step" takes labels that are there, and files of problems have none',
        ),
        (LABELLED, 'data.type "labelled" holds labels of responses .*, which rloo does not take'),
        (
            LABELLED | {"algorithm": STEPS | {"labels": "soft"}},
            "which step_bce does not take with labels of its own",
        ),
        (LABELLED | {"algorithm": OUTCOMES}, "evaluation needs data.held_out, labelled responses"),
        (
            LABELLED | {"algorithm": OUTCOMES, "rollouts": {"per_problem": 4}},
            r"rollouts\.per_problem: nothing is sampled",
        ),
        ({"algorithm": OUTCOMES | {"step_prefix": "Step {n}: "}}, "a policy writes its own"),
        ({"algorithm": OUTCOMES | {"step_prefix": "Step "}}, "has to hold {n}"),
        (LABELLED | {"algorithm": STEPS}, "evaluation needs data.held_out, labelled responses"),
        ({"reference_kl_every": 5, "algorithm": STEPS}, "the policy of step_bce is not held"),
        ({"policy": "nowhere"}, r"policy: .*nowhere is no model folder"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused_by_file_and_field(
    changes: dict[str, Any], problem: str, policy: Path, tmp_path: Path
) -> None:
    content = {
        "name": "job",
        "policy": str(policy),
        "data": {"type": "task", "task": TASK},
        "algorithm": {"type": "rloo"},
        "optimizer": {"lr": 1e-3},
        "steps": 1,
    }
    path = tmp_path / "job.json"
    path.write_text(json.dumps(content | changes))
    with pytest.raises(InvalidInput, match=rf"job\.json: .*{problem}"):
        read_job(path)
