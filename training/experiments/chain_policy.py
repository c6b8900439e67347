"""A policy that is right now and then on four chained operations: imitation, stopped early."""

import shutil
from pathlib import Path

import torch

from prm.errors import RungError
from training.checkpoints import ModelSize, new_model, save_model
from training.experiments.runs import sample, train
from training.held_out import ResponseReader, policy_figures
from training.settings import Sft
from training.spec import Optimizer, Rollouts, TaskData, TrainingJob
from training.tasks.chain_calc import ChainCalc

TASK = ChainCalc(operations=(4, 4))
# 0.1 million parameters.
_SIZE = ModelSize(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=192, max_position_embeddings=64,
)  # fmt: skip
# Times the standard deviation of 0.02 that weights of transformers' models begin with, which suits
# ten times the width: with it 2,500 steps taught nothing, with five times as much 600 do.
_SCALE = 5.0


_MORE, _MOST_ROUNDS = 50, 40


def train_chain_policy(folder: Path, *, seed: int, least: float, first: int = 400) -> Path:
    """`folder`/policy, which is right in `least` or more of its answers to validation problems.

    Each step imitates 64 new right solutions. Between nothing and nearly everything lie three
    hundred steps, at another place for each seed: so after `first` steps, and every 50 from there
    on, those problems are asked whether to stop. Raises RungError after 2,000 more.
    """
    policy = _initial(folder / "initial", seed)
    asked = TASK.problems(seed, 100, "validation")
    for number in range(_MOST_ROUNDS):
        job = _round(policy, seed * 1000 + number, _MORE if number else first)
        policy = train(job, folder / f"round-{number}") / "policy"
        groups = sample(policy, TASK, asked, per_problem=8, seed=f"{seed}/validation")
        if policy_figures(groups, ResponseReader.of_task(TASK))["average"] >= least:
            return shutil.copytree(policy, folder / "policy", dirs_exist_ok=True)
    raise RungError(f"{folder}: after {_MOST_ROUNDS} rounds less than {least:.0%} right")


def _initial(folder: Path, seed: int) -> Path:
    model = new_model(_SIZE, seed=seed, alphabet=TASK.alphabet)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(_SCALE)
    save_model(model, folder, alphabet=TASK.alphabet)
    return folder


def _round(policy: Path, seed: int, steps: int) -> TrainingJob:
    return TrainingJob(
        name="policy",
        seed=seed,
        policy=policy,
        data=TaskData(task=TASK),
        algorithm=Sft(),
        rollouts=Rollouts(problems=64),
        optimizer=Optimizer(lr=2e-3, warmup=0.1, betas=(0.9, 0.99)),
        steps=steps,
        checkpoint_every=steps,
        evaluation=False,
    )
