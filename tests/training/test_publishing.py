"""What a run has trained is published, and read there as the trainer reads it."""

from pathlib import Path
from typing import Any

import pytest

from prm.chat import ChatTokenizer
from prm.importing import Asked
from prm.manifest import PrmManifest
from prm.registry import load_version
from tests.imports import imported
from training.assembly import GOLDEN
from training.data import Example, encode_problem
from training.held_out import ResponseReader, step_rewards
from training.models import TrainedLM
from training.rollout_batch import Written
from training.run import run_job
from training.spec import TrainingJob
from training.tasks.running_sum import RunningSum
from training.types import Problem

TASK = RunningSum()
BETA = 0.5
COMMON: dict[str, Any] = {
    "data": {"type": "task", "task": TASK.model_dump()},
    "optimizer": {"lr": 3e-3},
    "rollouts": {"problems": 8, "per_problem": 4},
    "evaluation": False,
}


@pytest.mark.slow
def test_an_implicit_prm_scores_where_it_is_served_as_where_it_was_trained(tmp_path: Path) -> None:
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
    }
    sft = {"name": "sft", "steps": 30, "policy": size, "algorithm": {"type": "sft"}}
    policy = run_job(TrainingJob.model_validate(COMMON | sft), tmp_path / "sft").models["policy"]
    implicit = {
        "name": "prm",
        "steps": 10,
        "policy": policy,
        "algorithm": {"type": "implicit_prm", "beta": BETA},
    }
    prm = run_job(TrainingJob.model_validate(COMMON | implicit), tmp_path / "prm").models["prm"]
    root = tmp_path / "models"
    said: dict[str, Any] = {"golden": tmp_path / "prm" / GOLDEN, "step_separator": ""}
    imported(policy, root, name="sums-policy", is_policy=True, **said)
    asked = Asked(family="implicit", settings={"beta": BETA})
    imported(prm, root, name="sums-prm", asked=asked, reference="sums-policy@1", **said)
    manifest = load_version(root / "sums-prm" / "1").manifest
    assert isinstance(manifest, PrmManifest)
    tokenizer = ChatTokenizer(prm)
    models = TrainedLM.load(prm), TrainedLM.load(policy)
    for golden in manifest.golden:
        response = written(tokenizer, golden.messages[0].content, "".join(golden.steps))
        reader = ResponseReader.of_task(TASK)
        ((rewards,),) = step_rewards([[response]], reader, tokenizer, *models)
        assert list(golden.raw) == pytest.approx([BETA * value for value in rewards], abs=1e-4)


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
