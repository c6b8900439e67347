"""λ-GRPO: its tree task with policies that need no language model, then one through the loop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from training.experiments.base import Folders, Report, Result, Unit
from training.experiments.lambda_grpo_report import ARMS, report_on
from training.experiments.runs import SMALL, curve, train
from training.experiments.statistics import area_under
from training.experiments.tree_runs import LEARNERS, shares_by_tree
from training.settings import Grpo, LambdaGrpo, Sft
from training.spec import Evaluation, Optimizer, Rollouts, TaskData, TrainingJob
from training.tasks.shared_prefix import SharedPrefix

SEEDS = range(8)
# A bound that every gradient reaches: all steps of both arms have it as their norm.
EQUAL_NORM = 0.02
TASK = SharedPrefix()


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything there is."""

    runs: int
    tree_steps: int
    base_steps: int
    steps: int
    every: int
    problems: int


FULL = Size(runs=100, tree_steps=250, base_steps=300, steps=300, every=20, problems=200)
QUICK = Size(runs=20, tree_steps=20, base_steps=10, steps=4, every=2, problems=10)


class LambdaGrpoExperiment:
    """See `Experiment`."""

    name = "lambda_grpo"
    title = "λ-GRPO: each shared prefix counts once"
    claim = (
        "Where responses of a group share prefixes, GRPO moves a prefix as often as it was taken; "
        "dividing each token's loss by how many share it reaches the peak sooner and higher, at "
        "negligible cost."
    )
    source = "GRPO is Secretly a Process Reward Model, arXiv 2509.21154, Table 1 and §5"
    setting = f"""
**Tree.** The paper's task: four moves, one leaf worth 1, the others behind its first n moves worth
r_neg, all else 0.7; groups of 16, {FULL.tree_steps} steps. A run succeeds when the target is more
than half of what it writes in the last 50 steps. {FULL.runs} runs per cell; p is Fisher's exact
test against GRPO. "Matched norm" makes GRPO's gradient in every step as long as λ-GRPO's of the
same rollouts. The policy is a table, or a network of two hidden layers of 64 that reads the moves
so far. Learning rates are those of an earlier pilot, and for the table half and twice that.

**Language model.** `shared_prefix`: the first token chooses between a thorough way (six running
sums, worth 1 when the last is right) and a quick one (worth 0.7). A Qwen2 model of two layers of
64, trained on imperfect solutions, is then trained by `rung train`'s loop on 8 new problems of 16
responses a step, AdamW at 3e-4. The base model, the problems and the rollouts are other ones for
each of the {len(SEEDS)} seeds; both algorithms normalise over the tokens of a group. "Equal norm"
clips every gradient to {EQUAL_NORM}, which all of them exceed.
Accuracy is the share of {FULL.problems * 4} responses to held-out problems that are worth 1.
Settings were chosen on seeds 100 to 103, which are not reported. At a rate of 1e-3 most runs of
both algorithms forgot what the base model knew. With the quick way worth 0.4 and only half of the
base model's responses thorough, both found the thorough way from the same two of three base models,
GRPO sooner.
"""

    def rounds(self, quick: bool) -> Sequence[Sequence[Unit]]:
        """The tree and the base models, then what learns from them."""
        seeds = SEEDS[:2] if quick else SEEDS
        trees = [Unit(f"tree_{name}", 0) for name in LEARNERS]
        bases = [Unit("base", seed) for seed in seeds]
        return [trees + bases, [Unit(arm, seed) for seed in seeds for arm in ARMS]]

    def run(self, unit: Unit, folders: Folders, *, quick: bool) -> Result:
        """See `Experiment.run`."""
        size = QUICK if quick else FULL
        if unit.arm.startswith("tree_"):
            learner = unit.arm.removeprefix("tree_")
            return {
                "shares": shares_by_tree(learner, unit.seed, runs=size.runs, steps=size.tree_steps)
            }
        if unit.arm == "base":
            folder = train(_base_job(unit.seed, size), folders[unit] / "run")
            return {"accuracy": curve(folder, "evaluation", "average")[1][-1]}
        base = folders[Unit("base", unit.seed)] / "run" / "policy"
        return _learned(train(policy_job(unit.arm, unit.seed, base, size), folders[unit] / "run"))

    def report(self, results: Mapping[Unit, Result], *, quick: bool) -> Report:
        """See `Experiment.report`."""
        return report_on(results)


def _base_job(seed: int, size: Size) -> TrainingJob:
    """Imitation of solutions that are mostly thorough and seldom right."""
    return TrainingJob(
        name="base",
        seed=seed,
        policy=SMALL,
        data=TaskData(task=TASK),
        algorithm=Sft(),
        rollouts=Rollouts(problems=128),
        optimizer=Optimizer(lr=2e-3, schedule="cosine", warmup=0.05),
        steps=size.base_steps,
        checkpoint_every=size.base_steps,
        evaluation=Evaluation(every=size.base_steps, problems=size.problems),
    )


def policy_job(arm: str, seed: int, base: Path, size: Size) -> TrainingJob:
    """One of `ARMS` from a base policy."""
    is_lambda, is_equal = arm.startswith("lambda"), arm.endswith("equal_norm")
    return TrainingJob(
        name=arm,
        seed=seed,
        policy=base,
        data=TaskData(task=TASK),
        algorithm=LambdaGrpo() if is_lambda else Grpo(normaliser="token_group"),
        rollouts=Rollouts(problems=8, per_problem=16, max_batch=128),
        optimizer=Optimizer(lr=3e-4, max_grad_norm=EQUAL_NORM if is_equal else 1.0),
        steps=size.steps,
        checkpoint_every=size.steps,
        evaluation=Evaluation(every=size.every, problems=size.problems),
    )


def _learned(folder: Path) -> Result:
    steps, accuracy = curve(folder, "evaluation", "average")
    seconds = {
        phase: median(curve(folder, "step", f"seconds_{phase}")[1])
        for phase in ("rollouts", "credit", "update")
    }
    shared = curve(folder, "step", "intermediate")[1]
    peak = max(accuracy)
    return {
        "steps": steps,
        "accuracy": accuracy,
        "peak": peak,
        "peak_step": steps[accuracy.index(peak)],
        "area": area_under(steps, accuracy),
        "reward": curve(folder, "step", "reward")[1],
        "shared_tokens": fmean(shared) if shared else None,
        "grad_norm": median(curve(folder, "step", "grad_norm")[1]),
        "phase_seconds": seconds,
    }
