"""What experiments do with jobs: run one, read what it told, sample from the policy it made."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from prm.chat import ChatTokenizer
from training.events import read_events
from training.grades import OutcomeGrader
from training.models import TrainedLM
from training.rollout_batch import Group
from training.run import CHECKPOINTS, EVENTS, run_job
from training.spec import NewModel, Rollouts, TrainingJob
from training.tasks import Task
from training.types import Problem
from training.verifiers import TaskJudge
from training.writers import InProcessWriter

# 0.1 million parameters, for responses of a dozen tokens.
SMALL = NewModel(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=192, max_position_embeddings=64,
)  # fmt: skip
# Rows of one forward of the sampler, where nothing else decides it.
SAMPLED_AT_ONCE = 512


def train(job: TrainingJob, folder: Path) -> Path:
    """Run a job from its start, whatever an earlier try left, and return `folder`.

    Nothing to resume from is kept: a unit is done whole or again.
    """
    shutil.rmtree(folder, ignore_errors=True)
    run_job(job, folder)
    shutil.rmtree(folder / CHECKPOINTS)
    return folder


def curve(folder: Path, kind: str, name: str) -> tuple[list[int], list[float]]:
    """Steps of a run, and what its events of this kind tell by this name."""
    told = [
        (event["step"], event[name])
        for event in read_events(folder / EVENTS)
        if event["kind"] == kind and event.get(name) is not None
    ]
    return [step for step, _ in told], [value for _, value in told]


def sample(
    policy: Path, task: Task, problems: Sequence[Problem], *, per_problem: int, seed: str
) -> list[Group]:
    """What a policy's folder writes at temperature 1, graded by the task."""
    writer = InProcessWriter(
        TrainedLM.load(policy).freeze(),
        ChatTokenizer(policy),
        Rollouts(max_batch=SAMPLED_AT_ONCE),
        max_tokens=task.max_tokens,
    )
    written = writer.write(problems, seed=seed, policy_step=0, per_problem=per_problem)
    return list(OutcomeGrader(TaskJudge(task)).grade(written).groups)
