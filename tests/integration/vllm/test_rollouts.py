"""Training from a real vLLM: it writes with the weights that training has, and says it right."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from prm.errors import InvalidInput, Unavailable
from prm.manifest import ModelVersion
from tests.integration.vllm.conftest import (
    API_KEY,
    MAX_SEQUENCES,
    PolicyServer,
    ServedFolder,
    VllmServer,
    running_vllm,
)
from tests.training.jobs import online
from training.assembly import Run, assemble
from training.events import Events, read_events
from training.loop import OnlineTraining
from training.rollout_batch import RolloutBatch, Written
from training.run import CHECKPOINTS, EVENTS, run_job
from training.spec import TrainingJob
from training.state import last_checkpoint
from training.untied import untied_copy

pytestmark = pytest.mark.vllm

# Two engines in float32 on one CPU, sums in another order: at most so much at any token, of which
# the improbable have the largest; on average a hundredth of it. Weights of which one matrix is old
# are off by 1e-2 on average.
TOLERANCE = 2e-4
# Room for all prompts in one step; see `conftest.vllm`.
FLAGS = (
    "--max-model-len=256",
    f"--max-num-seqs={MAX_SEQUENCES}",
    f"--max-num-batched-tokens={MAX_SEQUENCES * 256}",
)


@pytest.fixture(scope="module")
def folder(policy_version: ModelVersion) -> Path:
    """The bundled policy."""
    return policy_version.folder


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ServedFolder:
    """What vLLM is started on to write for it."""
    untied = tmp_path_factory.mktemp("untied") / "policy"
    untied_copy(folder, untied)
    return ServedFolder(
        name="policy", folder=untied, flags=FLAGS, environment={"VLLM_SERVER_DEV_MODE": "1"}
    )


@pytest.fixture(scope="module")
def writing(model: ServedFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A vLLM that takes weights."""
    with running_vllm([model], tmp_path_factory.mktemp("vllm")) as (server,):
        yield server


@pytest.fixture
def job_of(
    folder: Path, writing: VllmServer, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TrainingJob]:
    """GRPO for three steps; what is given replaces its fields."""
    monkeypatch.setenv("RUNG_TEST_KEY", API_KEY)

    def job(server: VllmServer = writing, **changes: Any) -> TrainingJob:
        there = {"url": server.url, "key_variable": "RUNG_TEST_KEY", "patience_s": 2.0}
        fields: dict[str, Any] = {
            "name": "from-vllm",
            "seed": 1,
            "policy": folder,
            "data": {"type": "task", "task": {"type": "arithmetic"}},
            "algorithm": {"type": "grpo"},
            "rollouts": {"problems": 8, "per_problem": 8, "server": there},
            "optimizer": {"lr": 3e-4},
            "steps": 3,
            "checkpoint_every": 1,
            "evaluation": False,
        }
        return TrainingJob.model_validate(fields | changes)

    return job


@pytest.fixture
def open_run(tmp_path: Path) -> Iterator[Callable[[TrainingJob], Run]]:
    """Runs whose connections end with the test."""
    with ExitStack() as stack:
        yield lambda job: assemble(job, Events([]), tmp_path / "run", stack)


def write(training: OnlineTraining, seed: str, per_problem: int = 4) -> list[list[Written]]:
    problems = training.problems.draw(1, 0)
    step = training.policy.steps
    return training.writer.write(problems, seed=seed, policy_step=step, per_problem=per_problem)


def ids_of(groups: list[list[Written]]) -> list[tuple[int, ...]]:
    return [rollout.example.ids for group in groups for rollout in group]


@torch.no_grad()
def gap(training: OnlineTraining, groups: list[list[Written]]) -> float:
    """The largest distance of the server's log-probs from those of the policy as it is."""
    batch = RolloutBatch.of(groups)
    own = training.policy.model.logprobs(batch.examples)
    return float((batch.sampler_logprobs - own).abs().max())


@torch.no_grad()
def change_weights(training: OnlineTraining) -> None:
    """Every weight, as an optimizer step would, and by much more."""
    generator = torch.Generator().manual_seed(training.policy.steps)
    for weight in training.policy.model.parameters:
        weight.add_(0.03 * torch.randn(weight.shape, generator=generator))
    training.policy.steps += 1


def test_after_an_update_it_writes_with_the_new_weights_and_not_with_the_old(
    job_of: Callable[..., TrainingJob], open_run: Callable[[TrainingJob], Run]
) -> None:
    training = online(open_run(job_of()))
    first = write(training, "x")
    assert gap(training, first) < TOLERANCE
    for _ in range(2):
        change_weights(training)
        # What the old weights wrote is not what the new ones say of it: the test can tell.
        assert gap(training, first) > 100 * TOLERANCE
        later = write(training, "x")
        assert gap(training, later) < TOLERANCE
        # The same prompts and seeds: a prefix cache of the old weights would show above.
        assert ids_of(later) != ids_of(first)
        assert {r.policy_step for group in later for r in group} == {training.policy.steps}
        first = later


def test_groups_come_whole_with_their_ends_and_are_the_same_for_the_same_seed(
    job_of: Callable[..., TrainingJob], open_run: Callable[[TrainingJob], Run]
) -> None:
    run = open_run(job_of())
    training = online(run)
    groups = write(training, "a", per_problem=16)
    eos_ids = training.policy.model.engine.eos_ids
    for group in groups:
        assert len(group) == 16
        for rollout in group:
            response = rollout.example.ids[rollout.example.first :]
            assert len(response) == len(rollout.logprobs)
            assert not rollout.is_cut
            assert response[-1] in eos_ids
            assert run.tokenizer.encode_response(rollout.text).ids == response[:-1]
    assert any(len({rollout.example.ids for rollout in group}) > 1 for group in groups)
    again = write(training, "a", per_problem=16)
    same = [
        one.example == other.example
        for group, repeated in zip(groups, again, strict=True)
        for one, other in zip(group, repeated, strict=True)
    ]
    # Another order of requests changes the last bits of the logits, and now and then a token.
    assert sum(same) > 0.95 * len(same)
    short = replace_rollouts(job_of(), max_tokens=5)
    cut = write(online(open_run(short)), "a")
    lengths = {len(r.example.ids) - r.example.first for group in cut for r in group}
    assert all(rollout.is_cut for group in cut for rollout in group)
    assert lengths == {5}


def replace_rollouts(job: TrainingJob, **changes: Any) -> TrainingJob:
    return job.model_copy(update={"rollouts": job.rollouts.model_copy(update=changes)})


def test_a_job_runs_is_killed_and_resumed(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, told: dict[str, float]) -> None:
        if step == 2:
            raise Killed

    job = job_of(evaluation={"every": 3, "problems": 16, "per_problem": 4})
    with pytest.raises(Killed):
        run_job(job, tmp_path / "run", watch=kill)
    done = run_job(job, tmp_path / "run", resume=True)
    assert 0 < done.evaluation["average"] <= 1
    events = read_events(tmp_path / "run" / EVENTS)
    assert [event["step"] for event in events] == [1, 2, 3, 3]
    for event in events[:3]:
        assert event["weights_by_disk"] == 1
        assert event["staleness"] == 0
        assert event["sampler_gap"] < TOLERANCE / 20
        assert event["effective_share"] > 0.999
        assert event["reward"] > 0.2
    assert not list((tmp_path / "run").glob("weights-*"))


def test_a_vllm_that_takes_no_weights_is_refused_with_the_remedy(
    job_of: Callable[..., TrainingJob], vllm: PolicyServer, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=r"start vLLM .*VLLM_SERVER_DEV_MODE=1"):
        run_job(job_of(vllm), tmp_path / "run")


def test_a_vllm_that_dies_ends_the_run_and_leaves_the_last_checkpoint(
    model: ServedFolder, job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    (tmp_path / "logs").mkdir()
    with ExitStack() as stack:
        (server,) = stack.enter_context(running_vllm([model], tmp_path / "logs"))

        def die(step: int, told: dict[str, float]) -> None:
            if step == 1:
                stack.close()

        with pytest.raises(Unavailable, match=r"does not answer .*patience_s.*--resume"):
            run_job(job_of(server), tmp_path / "run", watch=die)
    kept = last_checkpoint(tmp_path / "run" / CHECKPOINTS)
    assert kept is not None
    assert kept.name == "step-00000001"
