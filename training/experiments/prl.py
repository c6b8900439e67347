"""PRL: average@n and pass@n beside outcome-only RL and other ways to stay near the start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from training.credit.base import frozen_logprobs
from training.experiments.base import Folders, Report, Result, Unit
from training.experiments.chain_policy import TASK, train_chain_policy
from training.experiments.prl_report import PRIMARY, SAMPLES, report_on
from training.experiments.runs import curve, sample, train
from training.models import TrainedLM
from training.rollout_batch import RolloutBatch
from training.settings import Algorithm, Grpo, Prl
from training.spec import Optimizer, Rollouts, TaskData, TrainingJob

# Its seed is none of those below.
BASE = Unit("base", 100)
SEEDS = range(5)
# Of the problems that every policy is tested on.
TEST_SEED = 2026
_EPSILON = 1e-6
# Coefficients are of a sum over the dozen tokens of a response.
ARMS: dict[str, Algorithm] = {
    "grpo": Grpo(epsilon=_EPSILON),
    **{f"k3_{c}": Grpo(epsilon=_EPSILON, kl_coefficient=c) for c in (0.1, 0.3)},
    "kl_in_reward_0.1": Prl(eta=10, kl_in="reward"),
    **{f"prl_{c}": Prl(eta=1 / c, epsilon=_EPSILON) for c in (0.03, 0.1, 0.3, 1.0)},
    "prl_start_0.3": Prl(eta=1 / 0.3, anchor="step_start", step_delimiter=";"),
    "prl_end_0.3": Prl(eta=1 / 0.3, anchor="step_end", step_delimiter=";"),
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything there is; for `least` and `first` see `train_chain_policy`."""

    least: float
    first: int
    steps: int
    problems: int
    tests: int


FULL = Size(least=0.2, first=400, steps=200, problems=48, tests=300)
QUICK = Size(least=0.0, first=5, steps=2, problems=8, tests=4)


class PrlExperiment:
    """See `Experiment`."""

    name = "prl"
    title = "PRL: the KL that is still to come, in the advantage"
    claim = (
        "Subtracting the KL-to-go from each token's advantage raises average@n and pass@n alike "
        "over RL from outcome rewards alone, at equal steps."
    )
    source = "PRL: Process Reward Learning, arXiv 2601.10201, Tables 1 to 3"
    setting = f"""
`chain_calc`: four operations on two-digit numbers modulo 100, 13 tokens. The base model (Qwen2, two
layers of 64) imitates right solutions until it is right in {FULL.least:.0%} of its answers to
validation problems; it is one for all runs. Each of these trains on {FULL.problems} fixed problems,
other ones for each of the {len(SEEDS)} seeds: {FULL.steps} steps of 32 problems times 8 responses,
AdamW at 3e-4, temperature 1. All are tested on the same {FULL.tests} problems that nobody trained
on, with {SAMPLES} responses each; pass@n is the unbiased estimate from those, average its n = 1.

Arms: GRPO without a KL; with a k3 loss of 0.1 and 0.3; with a KL of 0.1 in its reward, before the
group statistics; PRL with 1/η of 0.03 to 1 and the KL from each token on; PRL whose KL is taken at
a step's first token, or at its last as the authors' code does. Group statistics, clipping and
optimizer are the same in all of them.

Differences to GRPO have intervals over seeds and problems, paired: the variances of both are added
up, with Student's t. The verdict stands on 1/η = {PRIMARY.removeprefix("prl_")}, the best in a
pilot with other problems, seeds and another model; the other settings are that pilot's, too.
"""

    def rounds(self, quick: bool) -> Sequence[Sequence[Unit]]:
        """The base model, then every arm from it."""
        seeds = SEEDS[:1] if quick else SEEDS
        return [[BASE], [Unit(arm, seed) for seed in seeds for arm in ARMS]]

    def run(self, unit: Unit, folders: Folders, *, quick: bool) -> Result:
        """See `Experiment.run`."""
        size = QUICK if quick else FULL
        base = folders[BASE] / "policy"
        if unit == BASE:
            train_chain_policy(folders[unit], seed=unit.seed, least=size.least, first=size.first)
            return tested(base, base, "base", size.tests)
        folder = train(policy_job(ARMS[unit.arm], unit.seed, base, size), folders[unit] / "run")
        rewards = curve(folder, "step", "reward")[1]
        return tested(folder / "policy", base, str(unit), size.tests) | {
            "train_accuracy": fmean(rewards[-20:]),
            "rewards": [round(reward, 4) for reward in rewards],
        }

    def report(self, results: Mapping[Unit, Result], *, quick: bool) -> Report:
        """See `Experiment.report`."""
        arms = {
            arm: [result for unit, result in sorted(results.items()) if unit.arm == arm]
            for arm in ARMS
        }
        return report_on(results[BASE], arms)


def policy_job(algorithm: Algorithm, seed: int, base: Path, size: Size) -> TrainingJob:
    """One arm, from the base policy."""
    return TrainingJob(
        name="arm",
        seed=seed,
        policy=base,
        data=TaskData(task=TASK, problems=size.problems),
        algorithm=algorithm,
        rollouts=Rollouts(problems=min(32, size.problems), per_problem=8, max_batch=256),
        optimizer=Optimizer(lr=3e-4),
        steps=size.steps,
        checkpoint_every=size.steps,
        evaluation=False,
    )


def tested(policy: Path, base: Path, seed: str, tests: int) -> Result:
    """How many of `SAMPLES` responses are right to each test problem, and how far it has gone.

    `entropy` is per token, `kl` to the base policy per response, both of what the policy writes.
    """
    problems = TASK.problems(TEST_SEED, tests, "test")
    groups = sample(policy, TASK, problems, per_problem=SAMPLES, seed=seed)
    batch = RolloutBatch.of(groups)
    reference = frozen_logprobs(TrainedLM.load(base).freeze(), batch, 32_768)
    ratio = (batch.sampler_logprobs - reference).masked_fill(~batch.mask, 0.0)
    return {
        "right": [sum(rollout.reward >= 1 for rollout in group) for group in groups],
        "entropy": -float(batch.sampler_logprobs.sum() / batch.mask.sum()),
        "kl": float(ratio.sum(1).mean()),
    }
