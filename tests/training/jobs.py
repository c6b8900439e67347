"""Jobs on a model of a few thousand weights, which runs write, train and save in a moment."""

from pathlib import Path
from typing import Any

from training.spec import TrainingJob

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


def small_job(policy: Path, algorithm: dict[str, Any], **changes: Any) -> TrainingJob:
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
