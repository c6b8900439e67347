"""Step labels: of a task, from completions, out of files."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput
from training.events import read_events
from training.grades import Graded, OutcomeGrader
from training.held_out import ResponseReader
from training.models import TrainedLM
from training.rollout_batch import Group
from training.run import EVENTS, run_job
from training.settings import StepBce
from training.spec import Rollouts, TrainingJob
from training.step_labels import MonteCarloLabels, TaskLabels
from training.tasks.chain_calc import ChainCalc
from training.tasks.running_sum import RunningSum
from training.types import Problem
from training.verifiers import TaskJudge
from training.writers import InProcessWriter

TASK = RunningSum(digits=(4, 4))


@pytest.fixture(scope="module")
def model(policy: Path) -> TrainedLM:
    return TrainedLM.load(policy).freeze()


@pytest.fixture(scope="module")
def groups(policy: Path, model: TrainedLM) -> Sequence[Group]:
    """Graded rollouts of a policy that is right now and then."""
    writer = InProcessWriter(model, ChatTokenizer(policy), Rollouts(), max_tokens=5)
    written = writer.write(
        TASK.problems(0, 6, "validation"), seed="labels", policy_step=0, per_problem=4
    )
    return OutcomeGrader(TaskJudge(TASK)).grade(written).groups


class CountingGrader:
    """Grades exactly, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Group] = []

    def grade(self, groups: Sequence[Group]) -> Graded:
        self.asked += groups
        return OutcomeGrader(TaskJudge(TASK)).grade(groups)


def test_what_follows_a_first_error_is_labelled_by_nobody(groups: Sequence[Group]) -> None:
    labels = TaskLabels(ResponseReader.of_task(TASK))(groups, "seed")
    seen = set()
    for group, own in zip(groups, labels, strict=True):
        for rollout, row in zip(group, own, strict=True):
            error = TASK.first_error(rollout.problem, rollout.text)
            assert len(row) == len(rollout.text)
            known = [label for label in row if label is not None]
            assert known == ([1.0] * len(row) if error is None else [1.0] * error + [0.0])
            seen.add(error)
    assert len(seen) > 2


def test_a_prefix_is_completed_once_and_a_step_is_as_good_as_its_completions(
    groups: Sequence[Group], model: TrainedLM, policy: Path
) -> None:
    settings = StepBce(labels="soft", continuations=6)
    grader = CountingGrader()
    label = MonteCarloLabels(
        settings, model, ChatTokenizer(policy), ResponseReader.of_task(TASK), grader, Rollouts(),
        max_tokens=5,
    )  # fmt: skip
    labels = label(groups, "seed")
    prefixes = [group[0] for group in grader.asked]
    keys = [(r.problem.text, r.example.ids[: r.example.first]) for r in prefixes]
    assert len(keys) == len(set(keys))
    assert all(len(group) == 6 for group in grader.asked)
    hopes = {1.0: list[float](), 0.0: list[float]()}
    for group, own in zip(groups, labels, strict=True):
        for rollout, row in zip(group, own, strict=True):
            assert len(row) == len(rollout.text)
            if not rollout.is_cut and row:
                assert row[-1] == float(rollout.reward >= 1)
            exact = TaskLabels(ResponseReader.of_task(TASK))([[rollout]], "")[0][0]
            for soft, true in list(zip(row, exact, strict=True))[:-1]:
                if soft is not None and true is not None:
                    assert 0 <= soft <= 1
                    assert soft * 6 == pytest.approx(round(soft * 6))
                    hopes[true].append(soft)
    assert sum(hopes[1.0]) / len(hopes[1.0]) > sum(hopes[0.0]) / len(hopes[0.0])
    assert label(groups, "seed") == labels
    assert label(groups, "another seed") != labels


LINES: list[dict[str, Any]] = [
    {"problem": "12=", "steps": ["1", "3"], "labels": [True, True], "correct": True},
    {"problem": "12=", "response": "14", "first_error": 1, "correct": False},
    {"problem": "55=", "steps": ["5", "0"], "labels": [True, True]},
    {"problem": "55=", "steps": ["6", "1"], "labels": [False, None]},
]


def write(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        file.write("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def labelled_job(job_of: Callable[..., TrainingJob], file: Path, **changes: Any) -> TrainingJob:
    data = {"type": "labelled", "files": [file], "held_out": [file], "separator": ""}
    return job_of(
        {"type": "step_bce"},
        data=data,
        optimizer={"lr": 0.02},
        rollouts={"problems": 4},
        evaluation={"every": 30},
        **{"steps": 30} | changes,
    )


def test_a_prm_learns_labels_out_of_a_file(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    file = write(tmp_path / "labels.jsonl.gz", LINES)
    done = run_job(labelled_job(job_of, file), tmp_path / "run")
    assert list(done.models) == ["prm"]
    assert set(done.evaluation) == {"step_accuracy", "right_steps", "first_error_f1"}
    assert done.evaluation["step_accuracy"] == 1
    assert done.evaluation["right_steps"] == 5 / 7
    steps = [e for e in read_events(tmp_path / "run" / EVENTS) if e["kind"] == "step"]
    assert steps[0]["prm_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert steps[-1]["prm_loss"] < 0.1
    assert all(event["prm_labelled_steps"] == 7 for event in steps)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (
            [{"problem": "12=", "steps": ["1", "3"], "labels": [True]}],
            "line 1: 1 labels for 2 steps",
        ),
        ([*LINES, {"problem": "1x=", "steps": ["1"]}], r"line 5: .*no token for every character"),
        ([{"problem": "12=", "steps": ["1", "3"]}], "no step has a label; give labels, or first"),
        ([{"problem": "12=", "steps": [], "labels": []}], "line 1: steps is empty"),
    ],
)
def test_labels_that_cannot_be_used_are_named_by_their_line(
    lines: list[dict[str, Any]],
    problem: str,
    job_of: Callable[..., TrainingJob],
    tmp_path: Path,
) -> None:
    file = write(tmp_path / "labels.jsonl", lines)
    with pytest.raises(InvalidInput, match=rf"labels\.jsonl.*{problem}"):
        run_job(labelled_job(job_of, file), tmp_path / "run")


def test_a_blank_step_is_no_step_of_a_rollout() -> None:
    task = ChainCalc()
    labels = TaskLabels(ResponseReader.of_task(task))
    assert labels([[]], "") == [[]]
    assert task.first_error(Problem(text="47+12*03=", answer="77"), "59; ;77;") is not None
