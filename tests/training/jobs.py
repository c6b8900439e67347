"""Jobs on a model of a few thousand weights, which runs write, train and save in a moment."""

from pathlib import Path
from typing import Any

import pytest

from prm.chat import ChatTokenizer
from training.assembly import Run
from training.data import Example, encode_problem
from training.loop import OnlineTraining
from training.rollout_batch import Written
from training.run import run_job
from training.spec import TrainingJob
from training.types import Problem

TASK = {"type": "running_sum", "digits": [4, 4], "slip_probability": 0.5}
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}


def pupil_job() -> TrainingJob:
    """What makes a policy that imitates slipping pupils, so that it is right now and then."""
    return TrainingJob.model_validate(
        {
            "name": "pupil",
            "policy": TINY,
            "data": {"type": "task", "task": TASK},
            "algorithm": {"type": "sft"},
            "rollouts": {"problems": 64},
            "optimizer": {"lr": 5e-3},
            "steps": 150,
            "checkpoint_every": 1000,
            "evaluation": False,
        }
    )


def kill_run(job: TrainingJob, out: Path, *, after_step: int) -> None:
    """Run it up to the end of a step, and no further."""

    class Killed(Exception):
        pass

    def kill(step: int, told: dict[str, float]) -> None:
        if step == after_step:
            raise Killed

    with pytest.raises(Killed):
        run_job(job, out, watch=kill)


def small_job(policy: Path, algorithm: dict[str, Any], /, **changes: Any) -> TrainingJob:
    """A job of three steps; what is given replaces its fields."""
    trains_prm = algorithm["type"] in ("prime", "repirl")
    fields: dict[str, Any] = {
        "name": "job",
        "seed": 3,
        "policy": policy,
        "data": {"type": "task", "task": TASK},
        "algorithm": algorithm,
        "rollouts": {"problems": 8, "per_problem": 4},
        "optimizer": {"lr": 1e-3},
        "steps": 3,
        "checkpoint_every": 2,
        "evaluation": False,
    }
    if trains_prm:
        fields["prm_optimizer"] = {"lr": 2e-3}
    return TrainingJob.model_validate(fields | changes)


def online(run: Run) -> OnlineTraining:
    """The loop of a run that trains online."""
    assert isinstance(run.training, OnlineTraining)
    return run.training


def written(tokenizer: ChatTokenizer, problem: str, text: str) -> Written:
    """A response without its end token: a served trajectory has none."""
    asked = Problem(text=problem, answer="0")
    prompt = encode_problem(tokenizer, asked)
    ids = tokenizer.encode_response(text).ids
    return Written(
        problem=asked,
        example=Example(ids=(*prompt, *ids), first=len(prompt)),
        text=text,
        logprobs=(0.0,) * len(ids),
        policy_step=0,
        is_cut=True,
    )
