"""PRIME: dense rewards from a PRM that learns beside the policy, where credit is hard to assign."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.experiments.base import Folders, Report, Result, Unit
from training.experiments.prime_report import BASE, OFFLINE, REPRODUCED, TITLES, report_on
from training.experiments.runs import curve, train
from training.settings import AccuracyFilter, ImplicitPrm, PolicySettings, Prime, Rloo, Sft
from training.spec import Evaluation, NewModel, Optimizer, Rollouts, TaskData, TrainingJob
from training.tasks.running_sum import RunningSum

SEEDS = range(5)
# All runs begin with one policy, and those that take a PRM with one of that policy's rollouts.
START, PRM = Unit(BASE, 100), Unit(OFFLINE, 100)
TASK = RunningSum(digits=(20, 20), slip_probability=0.25)
MODEL = NewModel(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    intermediate_size=192, max_position_embeddings=160,
)  # fmt: skip
PROBLEMS, PER_PROBLEM = 16, 8
OFFLINE_PROBLEMS = 32
LR, SLOW_LR, PRM_LR, BETA = 3e-4, 1e-4, 3e-3, 0.5
# Outcome rewards alone drop groups that are all right or all wrong; so does PRIME here.
EVERY_MIXED_GROUP = AccuracyFilter(low=0, high=1)


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything there is."""

    seeds: Sequence[int]
    base_steps: int
    offline_steps: int
    steps: int
    every: int
    problems: int


FULL = Size(
    seeds=SEEDS, base_steps=1000, offline_steps=80, steps=80, every=10, problems=100
)  # fmt: skip
QUICK = Size(seeds=SEEDS[:2], base_steps=4, offline_steps=2, steps=2, every=1, problems=4)


class PrimeExperiment:
    """See `Experiment`."""

    name = "prime"
    title = "PRIME: an implicit PRM that learns online"
    claim = (
        "Dense rewards from an implicit PRM that is trained on the policy's own rollouts make RL "
        "more sample-efficient than outcome rewards alone, and such a PRM keeps its accuracy where "
        "one that stays as it was decays."
    )
    source = (
        "Process Reinforcement through Implicit Rewards, arXiv 2502.01456, §4, §5.1 and Figure 5"
    )
    setting = f"""
`running_sum` with {TASK.digits[0]} digits: a chain of {TASK.digits[0]} sums modulo 10, of which
only the last is checked. The start policy, a Qwen2 model of two layers of 64, imitates pupils who
add one too many at a quarter of the digits from 5 on and carry it on; half of the
decisions never go wrong and are credited or blamed all the same.
All runs begin with that one policy; problems and rollouts are another for each of the {len(SEEDS)}
seeds. {FULL.steps} steps of {PROBLEMS} new problems of {PER_PROBLEM} responses; AdamW at {LR:g} for
the policy ("a third of the rate": {SLOW_LR:g}) and {PRM_LR:g} for the PRM (β {BETA:g}). Every
{FULL.every} steps it writes 4 responses to each of {FULL.problems} held-out problems. Groups that
are all right or all wrong are dropped in every arm; PRIME's narrower filter (0.2 to 0.8) would drop
nearly all of them at the start.

The PRM of "PRIME" begins as the policy. "Pre-trained" is a PRM of {FULL.offline_steps} steps of
{OFFLINE_PROBLEMS * PER_PROBLEM} responses of the start policy; it goes on learning online, or is
frozen there. The process rewards are the paper's: leave-one-out, undiscounted, scaled by the
batch's largest return, added to the outcome's with the same weight, whitened.

Settings were chosen with single runs of seed 100 from the same start policy, which are not
reported: with {PER_PROBLEM * 8} responses a step and a rate of 1e-3 RLOO learnt next to nothing in
120 steps and PRIME fell to nothing; with {PER_PROBLEM * 32} at {LR:g} both learnt. Distractor
letters between the sums (`long_chain`) had to be left out: in 1,000 steps imitation did not teach a
policy of this size to look past them.

{REPRODUCED}
"""

    def rounds(self, quick: bool) -> Sequence[Sequence[Unit]]:
        """The policies, PRMs from their rollouts, then what learns from both."""
        runs = [Unit(arm, seed) for seed in _size(quick).seeds for arm in TITLES]
        return [[START], [PRM], runs]

    def run(self, unit: Unit, folders: Folders, *, quick: bool) -> Result:
        """See `Experiment.run`."""
        size = _size(quick)
        out = folders[unit] / "run"
        if unit.arm == BASE:
            folder = train(base_job(unit.seed, size), out)
            return {"accuracy": curve(folder, "evaluation", "average")[1][-1]}
        policy = folders[START] / "run" / "policy"
        if unit.arm == OFFLINE:
            folder = train(offline_job(unit.seed, policy, size), out)
            return {
                "tokens": sum(curve(folder, "step", "tokens")[1]),
                "pair_accuracy": curve(folder, "step", "prm_pair_accuracy")[1],
            }
        prm = folders[PRM] / "run" / "prm"
        return learned(train(policy_job(unit.arm, unit.seed, policy, prm, size), out))

    def report(self, results: Mapping[Unit, Result], *, quick: bool) -> Report:
        """See `Experiment.report`."""
        by_arm = {
            arm: [result for unit, result in sorted(results.items()) if unit.arm == arm]
            for arm in (BASE, OFFLINE, *TITLES)
        }
        return report_on(by_arm)


def _size(quick: bool) -> Size:
    return QUICK if quick else FULL


def base_job(seed: int, size: Size) -> TrainingJob:
    """The pupil's imitation."""
    return TrainingJob(
        name=BASE,
        seed=seed,
        policy=MODEL,
        data=TaskData(task=TASK),
        algorithm=Sft(),
        rollouts=Rollouts(problems=32, max_batch=512),
        optimizer=Optimizer(lr=3e-3, schedule="cosine", warmup=0.05),
        steps=size.base_steps,
        checkpoint_every=size.base_steps,
        evaluation=Evaluation(every=size.base_steps, problems=size.problems),
    )


def offline_job(seed: int, policy: Path, size: Size) -> TrainingJob:
    """A PRM from the start policy's rollouts."""
    return TrainingJob(
        name=OFFLINE,
        seed=seed,
        policy=policy,
        data=TaskData(task=TASK),
        algorithm=ImplicitPrm(beta=BETA),
        rollouts=Rollouts(problems=OFFLINE_PROBLEMS, per_problem=PER_PROBLEM, max_batch=256),
        optimizer=Optimizer(lr=PRM_LR),
        steps=size.offline_steps,
        checkpoint_every=size.offline_steps,
        evaluation=False,
    )


def algorithm_of(arm: str) -> PolicySettings:
    """Of the arms in `TITLES`."""
    if arm.startswith("rloo"):
        return Rloo()
    return Prime(
        beta=BETA,
        filter=EVERY_MIXED_GROUP,
        update="never" if arm == "prime_frozen" else "after",
    )


def policy_job(arm: str, seed: int, policy: Path, prm: Path, size: Size) -> TrainingJob:
    """One of the arms in `TITLES`."""
    algorithm = algorithm_of(arm)
    trains_prm = isinstance(algorithm, Prime) and algorithm.update != "never"
    return TrainingJob(
        name=arm,
        seed=seed,
        policy=policy,
        prm=prm if arm in ("prime_frozen", "prime_warm") else None,
        data=TaskData(task=TASK),
        algorithm=algorithm,
        rollouts=Rollouts(problems=PROBLEMS, per_problem=PER_PROBLEM, max_batch=512),
        optimizer=Optimizer(lr=SLOW_LR if arm.endswith("slow") else LR),
        prm_optimizer=Optimizer(lr=PRM_LR) if trains_prm else None,
        steps=size.steps,
        checkpoint_every=size.steps,
        evaluation=Evaluation(every=size.every, problems=size.problems, per_problem=4),
    )


def learned(folder: Path) -> Result:
    """What a run's events tell. `tokens` are those that were sampled, up to each evaluation."""
    steps, accuracy = curve(folder, "evaluation", "average")
    written = dict(zip(*curve(folder, "step", "rollouts"), strict=True))
    lengths = dict(zip(*curve(folder, "step", "length"), strict=True))
    pairs = zip(*curve(folder, "step", "prm_pair_accuracy"), strict=True)
    return {
        "steps": steps,
        "accuracy": accuracy,
        "tokens": [sum(written[s] * lengths[s] for s in written if s <= step) for step in steps],
        "entropy": curve(folder, "step", "entropy")[1],
        "pair_accuracy": [list(pair) for pair in pairs],
        "best_of_n": curve(folder, "evaluation", "best_of_n_min")[1],
    }
