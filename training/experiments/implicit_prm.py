"""The implicit PRM: step rewards out of outcome labels, on a task that knows the wrong steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from training.experiments.base import Folders, Report, Result, Unit
from training.experiments.implicit_prm_report import BASE, COUNTS, REPRODUCED, report_on
from training.experiments.runs import curve, sample, train
from training.experiments.step_credit import (
    Candidates,
    best_of,
    first_error_f1,
    located,
    majority,
    oracle,
    scores_of,
)
from training.settings import ImplicitPrm, Sft
from training.spec import NewModel, Optimizer, Rollouts, TaskData, TrainingJob
from training.tasks.running_sum import RunningSum
from training.tasks.sums import digits_of, false_sums
from training.types import Rollout

SEEDS = range(5)
# The arms: their loss, β, and responses a problem (256 responses a step in each).
ARMS: dict[str, tuple[dict[str, Any], int]] = {
    "ce": ({"loss": "ce", "beta": 0.5}, 8),
    "dpo": ({"loss": "dpo", "beta": 0.5}, 8),
    "kto": ({"loss": "kto", "beta": 0.5}, 8),
    "nca": ({"loss": "nca", "beta": 0.5}, 8),
    "ce_paper_beta": ({"loss": "ce", "beta": 0.05}, 8),
    "ce_one": ({"loss": "ce", "beta": 0.5}, 1),
}
RESPONSES = 256
TASK = RunningSum()
MODEL = NewModel(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=192, max_position_embeddings=32,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything there is."""

    seeds: Sequence[int]
    base_steps: int
    steps: int
    problems: int


FULL = Size(seeds=SEEDS, base_steps=600, steps=100, problems=500)
QUICK = Size(seeds=SEEDS[:2], base_steps=30, steps=5, problems=20)


class ImplicitPrmExperiment:
    """See `Experiment`."""

    name = "implicit_prm"
    title = "Implicit PRM: step rewards from outcome labels"
    claim = (
        "A model trained to tell right responses from wrong ones by its log-ratio to a reference "
        "has learnt a reward for every step, without a label for any; it picks from candidates far "
        "better than a majority vote, and at inference the reference can be dropped."
    )
    source = "Free Process Rewards without Process Labels, arXiv 2412.01981, §3, Tables 1, 3 and 5"
    setting = f"""
`running_sum`: six digits, answered by their six running sums modulo 10; only the last sum is
checked. The policy, a Qwen2 model of two layers of 64, imitates pupils who add one too many at half
of the digits from 5 on and carry it on ({FULL.base_steps} steps of 128 solutions). Per arm a PRM
begins as that policy and takes {FULL.steps} steps of {RESPONSES} responses that the policy writes
to new problems, AdamW at 1e-3, outcome labels alone. Policy, problems and rollouts are another for
each of the {len(SEEDS)} seeds; all PRMs of a seed judge the same {COUNTS[-1]} candidates to each of
{FULL.problems} test problems. Best-of-n takes the candidate whose least step reward is highest.
A wrong step counts as located when it has the least reward, among responses with exactly one.
F1 is ProcessBench's, its threshold fitted on {FULL.problems // 2} validation problems.
Settings were chosen on seeds from 100 on, which are not reported.

{REPRODUCED}
"""

    def rounds(self, quick: bool) -> Sequence[Sequence[Unit]]:
        """The policies, then their PRMs."""
        seeds = _size(quick).seeds
        return [
            [Unit(BASE, seed) for seed in seeds],
            [Unit(arm, seed) for arm in ARMS for seed in seeds],
        ]

    def run(self, unit: Unit, folders: Folders, *, quick: bool) -> Result:
        """See `Experiment.run`."""
        size = _size(quick)
        if unit.arm == BASE:
            policy = train(base_job(unit.seed, size), folders[unit] / "run") / "policy"
            return _without_prm(policy, unit.seed, size)
        policy = folders[Unit(BASE, unit.seed)] / "run" / "policy"
        run = train(prm_job(unit.arm, unit.seed, policy, size), folders[unit] / "run")
        steps, accuracy = curve(run, "step", "prm_pair_accuracy")
        told = _with_prm(run / "prm", policy, unit.seed, size)
        return told | {"pair_accuracy": fmean(accuracy[-20:]), "steps": steps[-1]}

    def report(self, results: Mapping[Unit, Result], *, quick: bool) -> Report:
        """See `Experiment.report`."""
        by_arm = {
            arm: [result for unit, result in sorted(results.items()) if unit.arm == arm]
            for arm in (BASE, *ARMS)
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
        rollouts=Rollouts(problems=128),
        optimizer=Optimizer(lr=2e-3, schedule="cosine", warmup=0.05),
        steps=size.base_steps,
        checkpoint_every=size.base_steps,
        evaluation=False,
    )


def prm_job(arm: str, seed: int, policy: Path, size: Size) -> TrainingJob:
    """One of `ARMS`."""
    settings, per_problem = ARMS[arm]
    return TrainingJob(
        name=arm,
        seed=seed,
        policy=policy,
        data=TaskData(task=TASK),
        algorithm=ImplicitPrm(**settings),
        rollouts=Rollouts(
            problems=RESPONSES // per_problem, per_problem=per_problem, max_batch=RESPONSES
        ),
        optimizer=Optimizer(lr=1e-3),
        steps=size.steps,
        checkpoint_every=size.steps,
        evaluation=False,
    )


def _candidates(policy: Path, seed: int, size: Size) -> tuple[Candidates, Candidates]:
    """Of validation problems, for thresholds, and of test problems: the same for every arm."""
    some = TASK.problems(seed, size.problems // 2, "validation")
    all_ = TASK.problems(seed, size.problems, "test")
    fitting = sample(policy, TASK, some, per_problem=4, seed=f"{seed}/validation")
    testing = sample(policy, TASK, all_, per_problem=COUNTS[-1], seed=f"{seed}/test")
    return Candidates.of(TASK, fitting), Candidates.of(TASK, testing)


def _wrong_steps(rollout: Rollout) -> Sequence[int]:
    """Of a response that is as long as it ought to be; none of others."""
    digits = digits_of(rollout.problem.text)
    if len(digits) != len(rollout.steps):
        return []
    return list(false_sums(digits, rollout.steps))


def _read(
    fitting: Candidates, testing: Candidates, model: Path, reference: Path | None
) -> dict[str, Any]:
    """All that is asked of one way to score steps. `picked` has a digit per problem, 1 if right."""
    fitted = scores_of(fitting, TASK, model, reference)
    scores = scores_of(testing, TASK, model, reference)
    picked = {count: best_of(testing, scores, count) for count in COUNTS}
    return {
        "best_of": [fmean(picked[count]) for count in COUNTS],
        "picked": _bits(picked[COUNTS[-1]]),
        "best_of_sum": fmean(best_of(testing, scores, COUNTS[-1], sum)),
        "located": located(testing, scores, _wrong_steps),
        "first_error_f1": first_error_f1((fitting, fitted), (testing, scores)),
    }


def _without_prm(policy: Path, seed: int, size: Size) -> Result:
    """The candidates by themselves, and what the policy's own likelihood makes of them."""
    fitting, testing = _candidates(policy, seed, size)
    votes = {count: majority(testing, TASK, count) for count in COUNTS}
    rollouts = [rollout for group in testing.labelled for rollout in group]
    return {
        "average": fmean(rollout.is_correct for rollout in rollouts),
        "majority": [fmean(votes[count]) for count in COUNTS],
        "voted": _bits(votes[COUNTS[-1]]),
        "oracle": [fmean(oracle(testing, count)) for count in COUNTS],
        "one_wrong_step": fmean(len(_wrong_steps(rollout)) == 1 for rollout in rollouts),
        "likelihood": _read(fitting, testing, policy, None),
    }


def _with_prm(prm: Path, policy: Path, seed: int, size: Size) -> Result:
    fitting, testing = _candidates(policy, seed, size)
    problems = TASK.problems(seed, size.problems, "test")
    written = sample(prm, TASK, problems, per_problem=4, seed=f"{seed}/as a policy")
    return {
        "with_reference": _read(fitting, testing, prm, policy),
        "without_reference": _read(fitting, testing, prm, None),
        "as_policy": fmean(rollout.reward for group in written for rollout in group),
    }


def _bits(hits: Sequence[bool]) -> str:
    return "".join("01"[hit] for hit in hits)
