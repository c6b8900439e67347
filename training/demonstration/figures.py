"""What is chosen on the validation problems, and what is measured on the test problems."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from prm.aggregation import AGGREGATIONS, PlainAggregation
from prm.families.implicit import ImplicitRecipe
from prm.manifest import PrmManifest
from prm.types import StepScore
from training.demonstration.staged import Staged
from training.demonstration.stages import Groups
from training.evaluate import (
    Estimate,
    Group,
    best_of_n,
    chance_hits,
    fit_threshold,
    majority,
    mean_with_interval,
    oracle,
    pass_at_1,
    step_accuracy,
    threshold_hits,
    weighted_vote,
)

# Per problem, per rollout, per step.
Scores = Sequence[Sequence[Sequence[float]]]
RANKED_BY: tuple[PlainAggregation, ...] = ("min", "mean", "product", "last")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The PRM's manifest with its step value and threshold; the baseline's threshold beside it."""

    manifest: PrmManifest
    reference_threshold: float
    validation_f1: float
    reference_validation_f1: float


def choose(staged: Staged, validation: Groups) -> Choice:
    """The step value and threshold that find first errors best, by F1 on validation problems."""
    best: tuple[float, PrmManifest] | None = None
    for step_value in get_args(ImplicitRecipe.model_fields["step_value"].annotation):
        recipe = {**staged.prm_manifest.recipe, "step_value": step_value}
        manifest = staged.prm_manifest.model_copy(update={"recipe": recipe})
        threshold, f1 = fit_threshold(validation, prm_scores(staged, manifest, validation))
        if best is None or f1 > best[0]:
            best = f1, manifest.model_copy(update={"threshold": threshold})
    assert best is not None
    reference_threshold, reference_f1 = fit_threshold(
        validation, reference_scores(staged, validation)
    )
    return Choice(
        manifest=best[1],
        reference_threshold=reference_threshold,
        validation_f1=best[0],
        reference_validation_f1=reference_f1,
    )


def measure(staged: Staged, choice: Choice, test: Groups) -> dict[str, Any]:
    """Every figure of the report, each with its interval, and the baselines beside them."""
    scores = prm_scores(staged, choice.manifest, test)
    likelihoods = reference_scores(staged, test)
    count = len(test[0])
    rollouts = [rollout for group in test for rollout in group]
    return {
        "rollouts": {
            "problems": len(test),
            "per_problem": count,
            "wrong_answer": sum(not rollout.is_correct for rollout in rollouts),
            "with_a_wrong_step": sum(rollout.first_error is not None for rollout in rollouts),
            "right_answer_with_a_wrong_step": sum(
                rollout.is_correct and rollout.first_error is not None for rollout in rollouts
            ),
        },
        "chosen_on_validation": {
            "step_value": choice.manifest.recipe["step_value"],
            "threshold": choice.manifest.threshold,
            "f1": round(choice.validation_f1, 4),
            "reference_threshold": choice.reference_threshold,
            "reference_f1": round(choice.reference_validation_f1, 4),
        },
        "answers": _answer_figures(test, scores, likelihoods, count),
        "curves": _curves(test, _aggregate("min", scores)),
        "steps": _step_figures(choice, test, scores, likelihoods),
    }


def prm_scores(staged: Staged, manifest: PrmManifest, groups: Groups) -> Scores:
    """The PRM's step scores, in [0, 1]."""
    flat = staged.scorer(manifest).score([rollout for group in groups for rollout in group])
    return _regroup([_plain(steps) for steps in flat], groups)


def reference_scores(staged: Staged, groups: Groups) -> Scores:
    """The baseline: each step's log-probability under the policy itself."""
    flat = [rollout for group in groups for rollout in group]
    return _regroup(staged.scorer(staged.prm_manifest).reference_log_likelihoods(flat), groups)


def _answer_figures(
    test: Groups, scores: Scores, likelihoods: Scores, count: int
) -> dict[str, dict[str, float]]:
    by_min = _aggregate("min", scores)
    per_problem = {
        "pass@1": [pass_at_1(group) for group in test],
        f"majority@{count}": [majority(group) for group in test],
        f"best-of-{count}, PRM (min)": _best(test, by_min),
        f"weighted@{count}, PRM (min)": [
            weighted_vote(group, weights) for group, weights in zip(test, by_min, strict=True)
        ],
        f"oracle@{count}": [oracle(group) for group in test],
        **{
            f"best-of-{count}, PRM ({name})": _best(test, _aggregate(name, scores))
            for name in RANKED_BY[1:]
        },
        f"best-of-{count}, policy's own log-probability (min)": _best(
            test, _aggregate("min", likelihoods)
        ),
        f"best-of-{count}, policy's own log-probability (sum)": _best(
            test, _aggregate("sum", likelihoods)
        ),
    }
    best = per_problem[f"best-of-{count}, PRM (min)"]
    gains = {
        f"best-of-{count} minus {name}": [
            ours - theirs for ours, theirs in zip(best, per_problem[name], strict=True)
        ]
        for name in ("pass@1", f"majority@{count}")
    }
    return {
        name: mean_with_interval(values).as_dict() for name, values in (per_problem | gains).items()
    }


def _curves(test: Groups, scores: Sequence[Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Share of right answers with 1, 2, 4, … samples a problem, by how one is chosen.

    A problem's samples are dealt into as many disjoint hands of k as there are, and its figure is
    the mean over them.
    """
    count = len(test[0])
    sizes = [1 << power for power in range(count.bit_length())]
    chosen_by: dict[str, Callable[[Group, Sequence[float]], float]] = {
        "any of them (oracle)": lambda group, _: oracle(group),
        "weighted vote": weighted_vote,
        "best by the PRM": best_of_n,
        "majority": lambda group, _: majority(group),
    }
    return {
        name: {
            str(size): mean_with_interval(
                [
                    statistics.fmean(
                        choose_one(group[at : at + size], row[at : at + size])
                        for at in range(0, count - size + 1, size)
                    )
                    for group, row in zip(test, scores, strict=True)
                ]
            ).as_dict()
            for size in sizes
        }
        for name, choose_one in chosen_by.items()
    }


def _step_figures(
    choice: Choice, test: Groups, scores: Scores, likelihoods: Scores
) -> dict[str, dict[str, dict[str, float]]]:
    hits = {
        "PRM": threshold_hits(test, scores, choice.manifest.threshold),
        "policy's own log-probability": threshold_hits(
            test, likelihoods, choice.reference_threshold
        ),
        "chance: any step or none, evenly": chance_hits(test),
    }
    figures = {}
    for name, found in hits.items():
        accuracy = step_accuracy(test, found)
        columns: dict[str, Estimate] = {
            "erroneous": accuracy.erroneous,
            "correct": accuracy.correct,
            "f1": accuracy.f1,
        }
        figures[name] = {column: estimate.as_dict() for column, estimate in columns.items()}
    return figures


def _best(groups: Groups, scores: Sequence[Sequence[float]]) -> list[float]:
    return [best_of_n(group, row) for group, row in zip(groups, scores, strict=True)]


def _aggregate(name: PlainAggregation, scores: Scores) -> list[list[float]]:
    # A response without a step claims nothing and ranks last.
    worst = min((score for group in scores for steps in group for score in steps), default=0.0)
    return [
        [AGGREGATIONS[name](steps) if steps else worst - 1 for steps in group] for group in scores
    ]


def _plain(steps: Sequence[StepScore]) -> list[float]:
    return [step.score for step in steps]


def _regroup(flat: Sequence[Sequence[float]], groups: Groups) -> Scores:
    rows = iter(flat)
    return [[next(rows) for _ in group] for group in groups]
