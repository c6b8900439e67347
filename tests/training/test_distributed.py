"""Two processes train as one does: the same losses, states for any number, and one error."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.training.jobs import small_job
from training.data import Example
from training.events import read_events
from training.models import TrainedLM
from training.run import CHECKPOINTS, EVENTS, run_job
from training.spec import TrainingJob

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
PRIME = {"type": "prime", "beta": 0.5, "filter": {"low": 0, "high": 1}}
EVALUATION = {"every": 3, "problems": 6, "per_problem": 4}


def jobs_of(policy: Path) -> dict[str, TrainingJob]:
    """What is run by one process and by two. Micro-batches are so small that there are several."""
    small = {"optimizer": {"lr": 1e-3, "micro_tokens": 50}}
    both = small | {"prm_optimizer": {"lr": 2e-3, "micro_tokens": 50}}
    adapters = {"adapter": {"rank": 4}, "prm_adapter": {"rank": 2}}
    grpo = {"type": "grpo", "kl_coefficient": 0.01, "entropy_coefficient": 0.001}
    return {
        "grpo": small_job(policy, grpo, steps=4, evaluation=EVALUATION, **small),
        "prime": small_job(policy, PRIME, steps=4, evaluation=EVALUATION, **both),
        "prime-lora": small_job(policy, PRIME, **both, **adapters, activation_checkpointing=True),
        "repirl": small_job(policy, {"type": "repirl"}, rollouts={"problems": 3}, **both),
        "dpo": small_job(policy, {"type": "implicit_prm", "loss": "dpo", "beta": 0.5}),
        "sft": small_job(policy, {"type": "sft"}),
        "cut": small_job(policy, {"type": "grpo"}, steps=4, **small),
        "whole": small_job(policy, {"type": "grpo"}, steps=4, **small),
    }


def written_jobs(folder: Path, jobs: dict[str, TrainingJob]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, job in jobs.items():
        (folder / f"{name}.json").write_text(job.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def jobs(policy: Path) -> dict[str, TrainingJob]:
    return jobs_of(policy)


@pytest.fixture(scope="module")
def pair(jobs: dict[str, TrainingJob], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have run all of them."""
    folder = written_jobs(tmp_path_factory.mktemp("two"), jobs)
    # One process has gone as far as step 2, and two go on.
    run_job(jobs["whole"], folder / "single")
    shutil.rmtree(folder / "single" / CHECKPOINTS / "step-00000004")
    (folder / "single.json").write_text((folder / "whole.json").read_text())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node=2", "-m", "tests.training.two_ranks", str(folder)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def told(folder: Path) -> list[dict[str, float]]:
    """The numbers of a run's events, but for the time that they took."""
    of_time = ("kind", "seconds", "tokens_per_s")
    return [
        {key: value for key, value in event.items() if not key.startswith(of_time)}
        for event in read_events(folder / EVENTS)
    ]


def read(folder: Path) -> torch.Tensor:
    """What a model says of some response. Weights that the loss does not depend on may differ."""
    with torch.no_grad():
        return TrainedLM.load(folder).logprobs([Example(ids=(1, 2, 3, 4, 5, 6, 7, 8), first=2)])


@pytest.mark.parametrize("name", ["grpo", "prime", "prime-lora", "repirl", "dpo", "sft"])
def test_two_processes_follow_the_trajectory_of_one(
    name: str, jobs: dict[str, TrainingJob], pair: Path, tmp_path: Path
) -> None:
    alone = run_job(jobs[name], tmp_path / "one")
    ours, wanted = told(pair / name), told(tmp_path / "one")
    assert [event.keys() for event in ours] == [event.keys() for event in wanted]
    for event, expected in zip(ours, wanted, strict=True):
        assert event == pytest.approx(expected, abs=1e-4, rel=1e-4)
    for model, folder in alone.models.items():
        torch.testing.assert_close(read(pair / name / model), read(folder), atol=1e-3, rtol=0)


def test_the_state_of_two_processes_is_gone_on_from_by_two_and_by_one(
    jobs: dict[str, TrainingJob], pair: Path, tmp_path: Path
) -> None:
    wanted = read(pair / "whole" / "policy")
    assert torch.equal(read(pair / "cut" / "policy"), wanted)
    by_one = run_job(jobs["cut"], pair / "cut-kept", resume=True).models["policy"]
    torch.testing.assert_close(read(by_one), wanted, atol=1e-3, rtol=0)
    assert told(pair / "cut-kept")[-1] == pytest.approx(told(pair / "whole")[-1], abs=1e-4)


def test_the_state_of_one_process_is_gone_on_from_by_two(pair: Path) -> None:
    steps = [event["step"] for event in told(pair / "single")]
    assert steps == [1, 2, 3, 4]
    assert told(pair / "single")[-1] == pytest.approx(told(pair / "whole")[-1], abs=1e-4)


@pytest.fixture
def started(policy: Path, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts `rung train --processes 2` with a job of so many steps."""
    running: list[subprocess.Popen[str]] = []

    def start(steps: int) -> "subprocess.Popen[str]":
        path = tmp_path / "job.json"
        path.write_text(small_job(policy, {"type": "grpo"}, steps=steps).model_dump_json())
        command = [sys.executable, "-m", "server", "train", str(path), "--processes=2"]
        process = subprocess.Popen(
            [*command, f"--out={tmp_path / 'run'}"],
            cwd=REPOSITORY,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_a_process_that_dies_ends_the_run_with_one_error(
    started: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    process = started(100_000)
    events = tmp_path / "run" / EVENTS
    while not (events.exists() and events.read_text().count("\n") > 2):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    os.kill(second_rank(tmp_path), signal.SIGKILL)
    died = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - died < 40
    assert process.returncode == 1
    assert errors.splitlines() == [
        "error: rank 1 was ended by SIGKILL, and the run with it; --resume goes on from the last "
        "checkpoint"
    ]


def second_rank(folder: Path) -> int:
    """The process of rank 1 that trains in this folder."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = str(folder).encode() in (path / "cmdline").read_bytes()
            if is_ours and b"\0RANK=1\0" in (path / "environ").read_bytes():
                return int(path.name)
        except OSError:
            continue
    raise AssertionError("no process of rank 1")


def test_what_all_processes_refuse_is_told_once(
    started: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.json").write_text("{}")
    process = started(1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.startswith("error: ")
    assert "holds a run already" in errors
    assert errors.count("\n") == 1
