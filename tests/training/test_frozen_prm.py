"""PRIME with a PRM that was trained before and stays as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from training.events import read_events
from training.models import TrainedLM
from training.run import EVENTS, run_job
from training.spec import TrainingJob

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}


def job_of(algorithm: dict[str, Any], **changes: Any) -> TrainingJob:
    fields: dict[str, Any] = {
        "name": "job",
        "data": {"type": "task", "task": {"type": "running_sum", "digits": [2, 2]}},
        "algorithm": algorithm,
        "rollouts": {"problems": 16, "per_problem": 8},
        "optimizer": {"lr": 5e-3},
        "steps": 2,
        "checkpoint_every": 2,
        "evaluation": False,
    }
    return TrainingJob.model_validate(fields | changes)


def test_it_rewards_and_does_not_change(tmp_path: Path) -> None:
    imitation = job_of({"type": "sft"}, policy=TINY, steps=30)
    policy = run_job(imitation, tmp_path / "pupil").models["policy"]
    outcomes = job_of({"type": "implicit_prm", "beta": 0.5}, policy=policy, steps=3)
    prm = run_job(outcomes, tmp_path / "outcomes").models["prm"]

    prime = {"type": "prime", "update": "never", "filter": {"low": 0, "high": 1}}
    job = job_of(prime, policy=policy, prm=prm)
    done = run_job(job, tmp_path / "run")

    before, after = (dict(TrainedLM.load(f).model.state_dict()) for f in (prm, done.models["prm"]))
    assert all(torch.equal(before[name], after[name]) for name in before)
    learnt = dict(TrainedLM.load(done.models["policy"]).model.state_dict())
    start = dict(TrainedLM.load(policy).model.state_dict())
    assert any(not torch.equal(start[name], learnt[name]) for name in start)
    steps = read_events(tmp_path / "run" / EVENTS)
    assert all(0 <= event["prm_pair_accuracy"] <= 1 for event in steps)
    assert not any("prm_loss" in event for event in steps)
    run_job(job, tmp_path / "run", resume=True)


@pytest.mark.parametrize("changes", [{}, {"prm": "prm", "prm_optimizer": {"lr": 1e-3}}])
def test_it_has_to_be_given_and_takes_no_optimizer(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="give prm, and leave prm_optimizer out"):
        job_of({"type": "prime", "update": "never"}, policy="policy", **changes)
