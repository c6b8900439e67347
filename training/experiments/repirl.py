"""rePIRL: a PRM from demonstrations and failures, as a judge of rollouts and as a dense reward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.experiments.base import Folders, Report, Result, Unit
from training.experiments.chain_policy import TASK, train_chain_policy
from training.experiments.ranking import ranking
from training.experiments.repirl_report import report_on
from training.experiments.runs import curve, sample, train
from training.held_out import ResponseReader, policy_figures
from training.settings import Algorithm, ImplicitPrm, Prime, Repirl, Rloo, Sft
from training.settings.base import AccuracyFilter
from training.spec import Evaluation, Optimizer, Rollouts, TaskData, TrainingJob

BASE, SEEDS = "base", range(5)
PRM_LR = 5e-4
# Of AdamW's steps only zeros would notice this one: a PRM that stays as it is.
_FROZEN_LR = 1e-30


@dataclass(frozen=True, slots=True)
class PrmArm:
    """A PRM of the base policy, which stays; experts err at each step with probability `noise`."""

    algorithm: Algorithm
    noise: float = 0.0


@dataclass(frozen=True, slots=True)
class PolicyArm:
    """A policy from the base policy. `judge`: it is rewarded by that arm's PRM, which stays."""

    algorithm: Algorithm
    judge: str | None = None


PRMS: dict[str, PrmArm] = {
    "paper": PrmArm(Repirl()),
    "pooled": PrmArm(Repirl(normalise="pooled")),
    "unweighted": PrmArm(Repirl(weights="none")),
    "released": PrmArm(Repirl(normalise="response")),
    "mle": PrmArm(Repirl(prm_loss="mle")),
    "no_pseudo": PrmArm(Repirl(pseudo_experts=False)),
    "noise_0.3": PrmArm(Repirl(), noise=0.3),
    "head": PrmArm(Repirl(read_out="head")),
    "ce": PrmArm(Repirl(prm_loss="ce")),
    "head_ce": PrmArm(Repirl(read_out="head", prm_loss="ce")),
    "implicit": PrmArm(ImplicitPrm(beta=1.0)),
}
_ONLY = {"outcome_coefficient": 0.0, "process_coefficient": 1.0}
POLICIES: dict[str, PolicyArm] = {
    "rloo": PolicyArm(Rloo()),
    "dense_0.1": PolicyArm(Repirl(process_coefficient=0.1)),
    "dense_1": PolicyArm(Repirl(process_coefficient=1.0)),
    "only": PolicyArm(Repirl.model_validate(_ONLY)),
    "only_frozen": PolicyArm(Repirl.model_validate(_ONLY), judge="paper"),
    "prime": PolicyArm(Prime(beta=1.0, filter=AccuracyFilter(low=0, high=1))),
    "imitation": PolicyArm(Sft()),
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything there is. `judged` problems have 8 responses, `tests` have 16.

    `first` and `least`: see `train_chain_policy`.
    """

    seeds: Sequence[int]
    first: int
    least: float
    prm_steps: int
    policy_steps: int
    problems: int
    judged: int
    tests: int
    evaluation: Evaluation


FULL = Size(
    SEEDS, 400, 0.2, 400, 80, 32, 400, 300, Evaluation(every=20, problems=150, per_problem=4)
)
QUICK = Size(SEEDS[:1], 5, 0.0, 2, 2, 4, 8, 8, Evaluation(every=1, problems=4, per_problem=4))


class RepirlExperiment:
    """See `Experiment`."""

    name = "repirl"
    title = "rePIRL: a PRM by inverse reinforcement learning"
    claim = (
        "A PRM learnt from demonstrations and the policy's failures, with few assumptions on the "
        "expert, beats PRMs trained from outcomes in best-of-n and in finding first errors, and "
        "helps the policy as a dense reward."
    )
    source = "rePIRL, arXiv 2602.07832, §4.2 and §4.3"
    setting = f"""
`chain_calc`: four operations on two-digit numbers modulo 100, 13 tokens; every step's label is
exact. For each of the {len(SEEDS)} seeds a policy of its own (Qwen2, two layers of 64) imitates
right solutions until it is right in {FULL.least:.0%} of its answers to validation problems.

**Judges.** The policy stays as it is, and a PRM that begins as a copy of it takes {FULL.prm_steps}
steps of {FULL.problems} new problems times 8 rollouts, the same ones for every arm, AdamW at
{PRM_LR:g}. All but the implicit PRM also see one demonstration per problem, the oracle's or one
that errs at each step with probability 0.3; a demonstration whose answer is wrong counts as a
failure. Rewards are read off as log-ratios to the policy, so that arms differ in their loss alone,
but for two with a head over actions and tanh. Judged are 8 rollouts to each of {FULL.judged} test
problems. "Outcome cross-entropy" has the same pools as rePIRL and no weights; the implicit PRM
(β 1) sees no demonstration. F1 is ProcessBench's, with a threshold that half of the problems chose
for the other half; a step's score is the sum over its tokens. "Policy's likelihood" is no PRM:
log π of the policy itself.

**Dense rewards.** From the same policies, {FULL.policy_steps} steps of {FULL.problems} new problems
times 8 rollouts, AdamW at 3e-4: RLOO from outcomes; rePIRL with PRM and policy in turn, the process
advantage weighing c_p beside the outcome's 1; the PRM's reward alone, trained along or as the first
part left it; PRIME with β 1 and no filter; and, because rePIRL sees demonstrations and RLOO does
not, imitation of one demonstration to each of the same problems. Tested with 16 responses to each
of {FULL.tests} test problems.

Differences have Student's t intervals over seeds, paired: arms of a seed share the policy, the
rollouts of the first part, and the test problems. β and the sizes are those of a pilot with another
model and other problems. The rest was chosen on single runs of seeds 100 and 101, judged by 200
problems: how the policies begin, and the rate of the PRMs, which was 1e-3 in the pilot. There the
paper's loss came to an AUC of 0.59 in 100 steps and 0.64 in 300 (0.59 with 16 problems a step; 0.45
at 3e-3 with 16 problems, 200 steps), the implicit PRM to 0.59. From a policy that is right in 34 %
it was 0.72 after 300 steps at 1e-3 and after 150 at {PRM_LR:g}, 0.71 after 150 at 2e-4, and 0.49 at
2e-3 with a warm-up; the implicit PRM's was 0.64 after 300 at 1e-3 and 0.68 after 150 at 3e-4. From
one that is right in 49 % it was 0.63 after 150 at 1e-3. The pilot's 0.9 (of all pairs, not within
problems) was not reached with any of them.
"""

    def rounds(self, quick: bool) -> Sequence[Sequence[Unit]]:
        """The policies, their PRMs, and what they become with those."""
        seeds = _size(quick).seeds
        return [
            [Unit(BASE, seed) for seed in seeds],
            [Unit(arm, seed) for seed in seeds for arm in PRMS],
            [Unit(arm, seed) for seed in seeds for arm in POLICIES],
        ]

    def run(self, unit: Unit, folders: Folders, *, quick: bool) -> Result:
        """See `Experiment.run`."""
        size, run = _size(quick), folders[unit] / "run"
        if unit.arm == BASE:
            policy = train_chain_policy(
                folders[unit], seed=unit.seed, least=size.least, first=size.first
            )
            return _tested(policy, unit.seed, size) | _judged(policy, None, policy, unit.seed, size)
        policy = folders[Unit(BASE, unit.seed)] / "policy"
        if unit.arm in PRMS:
            train(prm_job(PRMS[unit.arm], unit.seed, policy, size), run)
            told = {
                name: [round(value, 4) for value in curve(run, "step", f"prm_{name}")[1]]
                for name in ("loss", "pair_accuracy", "ess")
            }
            return told | _judged(run / "prm", policy, policy, unit.seed, size)
        arm = POLICIES[unit.arm]
        judge = arm.judge and folders[Unit(arm.judge, unit.seed)] / "run" / "prm"
        train(policy_job(arm, unit.seed, policy, judge or None, size), run)
        steps, averages = curve(run, "evaluation", "average")
        tested = _tested(run / "policy", unit.seed, size)
        return {"steps": steps, "averages": averages} | tested

    def report(self, results: Mapping[Unit, Result], *, quick: bool) -> Report:
        """See `Experiment.report`."""
        arms: dict[str, list[Result]] = {}
        for unit, result in sorted(results.items()):
            arms.setdefault(unit.arm, []).append(result)
        return report_on(arms)


def _size(quick: bool) -> Size:
    return QUICK if quick else FULL


def prm_job(arm: PrmArm, seed: int, policy: Path, size: Size) -> TrainingJob:
    """A PRM alone."""
    is_irl = isinstance(arm.algorithm, Repirl)
    return TrainingJob(
        name="prm",
        seed=seed,
        policy=policy,
        data=TaskData(task=TASK.model_copy(update={"expert_noise": arm.noise})),
        algorithm=arm.algorithm,
        train_policy=not is_irl,
        rollouts=_rollouts(size),
        optimizer=Optimizer(lr=PRM_LR),
        prm_optimizer=Optimizer(lr=PRM_LR),
        steps=size.prm_steps,
        checkpoint_every=size.prm_steps,
        evaluation=False,
    )


def policy_job(
    arm: PolicyArm, seed: int, policy: Path, judge: Path | None, size: Size
) -> TrainingJob:
    """A policy, and a PRM beside it where there is one."""
    learns = PRM_LR if judge is None else _FROZEN_LR
    return TrainingJob(
        name="policy",
        seed=seed,
        policy=policy,
        prm=judge,
        data=TaskData(task=TASK),
        algorithm=arm.algorithm,
        rollouts=_rollouts(size),
        optimizer=Optimizer(lr=3e-4),
        prm_optimizer=Optimizer(lr=learns) if arm.algorithm.trains_prm else None,
        steps=size.policy_steps,
        checkpoint_every=size.policy_steps,
        evaluation=size.evaluation,
    )


def _rollouts(size: Size) -> Rollouts:
    return Rollouts(problems=size.problems, per_problem=8, max_batch=size.problems * 8)


def _tested(policy: Path, seed: int, size: Size) -> dict[str, float]:
    """avg@16 and pass@16."""
    problems = TASK.problems(seed, size.tests, "test")
    groups = sample(policy, TASK, problems, per_problem=16, seed=f"{seed}/tests")
    told = policy_figures(groups, ResponseReader.of_task(TASK))
    return {"avg@16": told["average"], "pass@16": told["pass"]}


def _judged(
    prm: Path, reference: Path | None, policy: Path, seed: int, size: Size
) -> dict[str, Any]:
    """The judge on the rollouts of the policy that it was trained for, and those by themselves."""
    problems = TASK.problems(seed, size.judged, "test")
    groups = sample(policy, TASK, problems, per_problem=8, seed=f"{seed}/judged")
    told = policy_figures(groups, ResponseReader.of_task(TASK))
    by_itself = {"avg@8": told["average"], "majority@8": told["majority"], "pass@8": told["pass"]}
    return by_itself | ranking(groups, TASK, prm, reference)
