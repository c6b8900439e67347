"""What may take the live version's place: nothing worse by the margin, and nothing that cheats."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from prm.errors import InvalidInput
from prm.evaluation.gate import GateReport, GateSettings, Judged, judge
from prm.evaluation.labelled import Scored

SETTINGS = GateSettings(metric="first_error_f1", margin=0.02)
Score = Callable[[random.Random, bool, int], float]


def responses(score: Score, *, problems: int = 100, each: int = 4) -> Judged:
    """Responses of 3 to 8 steps, half of them with an error; `score(rng, is right, place)`.

    The same responses whatever the scores are.
    """
    rng, scorer, made = random.Random(0), random.Random(1), []
    for problem in range(problems):
        for number in range(each):
            length = rng.randint(3, 8)
            error = None if number % 2 else rng.randrange(length)
            labels: list[bool | None] = [True] * length
            if error is not None:
                labels[error:] = [False] + [None] * (length - error - 1)
            scores = [score(scorer, error is None or i < error, i) for i in range(length)]
            made.append(
                Scored(
                    problem=str(problem),
                    scores=tuple(scores),
                    labels=tuple(labels),
                    is_correct=error is None,
                )
            )
    return Judged(responses=tuple(made), aggregation="min", threshold=0.5)


def noisy(share: float) -> Score:
    """0.9 for a right step and 0.1 for a wrong one, the other way round in this share of steps."""
    return lambda rng, right, place: 0.9 if right != (rng.random() < share) else 0.1


def verdict(live: Score, new: Score, **settings: Any) -> GateReport:
    return judge(responses(live), responses(new), SETTINGS.model_copy(update=settings))


def test_a_better_version_passes_with_its_numbers() -> None:
    report = verdict(noisy(0.2), noisy(0.02))
    assert report.passed
    assert report.difference is not None
    assert report.live is not None
    assert report.new is not None
    assert report.difference.low > 0
    assert report.difference.value == pytest.approx(
        report.new.figure.value - report.live.figure.value
    )
    assert (report.problems, report.responses) == (100, 400)


@pytest.mark.parametrize("metric", ["first_error_f1", "best_of_n", "auroc"])
def test_a_worse_version_is_rejected_by_every_metric(metric: str) -> None:
    report = verdict(noisy(0.02), noisy(0.25), metric=metric)
    assert not report.passed
    assert f"{metric} 0." in report.reasons[0]
    assert "worse by more than the margin of 0.02" in report.reasons[0]


def test_the_same_version_passes_and_few_problems_cannot_tell() -> None:
    assert verdict(noisy(0.1), noisy(0.1)).passed
    few = (responses(noisy(0.1), problems=4), responses(noisy(0.12), problems=4))
    report = judge(*few, SETTINGS)
    assert report.passed or "not shown to be within the margin" in report.reasons[0]
    shifted = judge(few[0], responses(lambda r, right, i: 0.9, problems=4), SETTINGS)
    assert not shifted.passed


def test_first_error_f1_is_processbench_s_by_hand() -> None:
    def of(scores: tuple[float, ...], labels: tuple[bool | None, ...], correct: bool) -> Scored:
        return Scored(problem="p", scores=scores, labels=labels, is_correct=correct)

    side = Judged(
        responses=(
            of((0.9, 0.1), (True, False), False),  # found
            of((0.1, 0.1), (True, False), False),  # too early
            of((0.9, 0.9), (True, True), True),  # cleared
            of((0.9, 0.2), (True, None), True),  # nobody knows: not counted
        ),
        aggregation="min",
        threshold=0.5,
    )
    report = judge(side, side, SETTINGS)
    assert report.new is not None
    # Half of the erroneous, all of the right ones: 2 · ½ · 1 / 1½.
    assert report.new.figure.value == pytest.approx(2 / 3)
    assert report.passed


def test_scores_that_are_no_numbers_are_rejected_before_anything_else() -> None:
    report = verdict(noisy(0.1), lambda rng, right, place: float("nan"))
    assert report.reasons == ("the scores of 400 of 400 responses are no numbers",)


def test_probabilities_that_lie_are_rejected_though_the_ranking_is_right() -> None:
    report = verdict(
        noisy(0.1),
        lambda rng, right, place: 0.52 if right != (rng.random() < 0.1) else 0.48,
        drift=1.0,
    )
    assert len(report.reasons) == 1
    assert "calibration error" in report.reasons[0]


def test_scores_that_follow_the_length_are_rejected() -> None:
    # Every step takes a little off, so that long responses score low, right or wrong.
    report = verdict(noisy(0.0), lambda rng, right, place: (0.95 if right else 0.4) - 0.04 * place)
    assert any("follow the number of steps: rank correlation -" in r for r in report.reasons)


def test_scores_far_from_the_live_version_s_are_rejected() -> None:
    report = verdict(noisy(0.1), lambda rng, right, place: 0.99 if right else 0.49, calibration=1)
    assert any("further apart than 0.3" in reason for reason in report.reasons)


@pytest.mark.parametrize("metric", ["first_error_f1", "best_of_n", "auroc"])
def test_labels_that_the_metric_needs_are_asked_for(metric: Any) -> None:
    known = responses(noisy(0.1), problems=2)
    none = Judged(
        responses=tuple(
            Scored(
                problem=r.problem, scores=r.scores, labels=(None,) * len(r.labels), is_correct=True
            )
            for r in known.responses
        ),
        aggregation="min",
        threshold=0.5,
    )
    with pytest.raises(InvalidInput, match=f"{metric} needs held-out responses"):
        judge(none, none, GateSettings(metric=metric))
