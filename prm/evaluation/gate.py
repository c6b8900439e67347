"""The gate: may a new version take the place of the live one?

Both have scored the same held-out responses. The new one passes when it is *not worse by the
margin*: when the 95 % interval of its figure minus the live version's, by a paired bootstrap over
problems (Efron and Tibshirani 1993, chapter 16), lies above minus the margin. An interval that is
too wide to tell does not pass either, and is told as such. Beside the figure stand checks of what
a figure does not see: scores that are no numbers, probabilities that lie, scores that follow the
length of a response, scores far from the live version's.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from prm.aggregation import AGGREGATIONS, PlainAggregation, predicted_error
from prm.errors import InvalidInput
from prm.evaluation.labelled import Scored
from prm.evaluation.ranking import ranking_figures
from prm.evaluation.reliability import Interval, Resamples, reliability

Metric = Literal["first_error_f1", "best_of_n", "auroc"]
Floats = NDArray[np.float64]


class GateSettings(BaseModel):
    """What decides. The limits are of what the new version may be worse by than the live one.

    `calibration`: in expected calibration error of step scores, or of responses where no step has a
    label. `length_bias`: in the absolute rank correlation of a response's score with its number of
    steps, among responses that are alike right or wrong. `drift`: of the mean score, either way.
    `recent`: of the mean absolute difference of both versions' scores of what was scored lately.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Metric = "best_of_n"
    margin: float = Field(default=0.01, ge=0, le=1, allow_inf_nan=False)
    calibration: float = Field(default=0.1, gt=0, le=1, allow_inf_nan=False)
    length_bias: float = Field(default=0.2, gt=0, le=1, allow_inf_nan=False)
    drift: float = Field(default=0.3, gt=0, le=1, allow_inf_nan=False)
    recent: float = Field(default=0.3, gt=0, le=1, allow_inf_nan=False)
    seed: int = 0


class Side(BaseModel):
    """A version on the held-out responses. Figures are None where the labels do not give them."""

    model_config = ConfigDict(frozen=True)

    figure: Interval
    ece: float | None
    length_bias: float | None
    mean_score: float


class Drift(BaseModel):
    """How far apart two versions are on recent responses: mean difference, and mean distance."""

    model_config = ConfigDict(frozen=True)

    responses: int
    difference: float
    distance: float


class GateReport(BaseModel):
    """What both versions came to; `reasons` is empty where the new one passes."""

    model_config = ConfigDict(frozen=True)

    metric: Metric
    problems: int
    responses: int
    live: Side | None = None
    new: Side | None = None
    difference: Interval | None = None
    recent: Drift | None = None
    reasons: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the new version."""
        return not self.reasons


class Judged(BaseModel):
    """One version's scores of the held-out responses and of recent ones, and how it reads them."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    responses: tuple[Scored, ...]
    recent: tuple[Scored, ...] = ()
    aggregation: PlainAggregation
    threshold: float


def judge(live: Judged, new: Judged, settings: GateSettings) -> GateReport:
    """Compare two versions on the same responses, in the same order.

    Raises InvalidInput where the responses have not the labels that the metric needs.
    """
    pairs = zip(live.responses, new.responses, strict=True)
    assert all(a.problem == b.problem and a.labels == b.labels for a, b in pairs), "not the same"
    _check_labels(new.responses, settings.metric)
    problems = [response.problem for response in new.responses]
    told = GateReport(metric=settings.metric, problems=len(set(problems)), responses=len(problems))
    everything = (*new.responses, *new.recent)
    if bad := sum(not np.isfinite(response.scores).all() for response in everything):
        return told.model_copy(
            update={
                "reasons": (f"the scores of {bad} of {len(everything)} responses are no numbers",)
            }
        )
    resamples = Resamples(problems, seed=settings.seed)
    (ours, our_draws), (theirs, their_draws) = (
        _figure(side, settings.metric, resamples) for side in (new, live)
    )
    difference = resamples.interval(ours - theirs, our_draws - their_draws)
    before = _side(live, resamples.interval(theirs, their_draws))
    after = _side(new, resamples.interval(ours, our_draws))
    recent = _drift(live, new)
    reasons = _reasons(before, after, difference, settings)
    if recent is not None and recent.distance > settings.recent:
        reasons.append(
            f"of {recent.responses} recent responses the scores lie {recent.distance:.3f} apart in "
            f"the mean, further than {settings.recent:g}"
        )
    return told.model_copy(
        update={
            "live": before,
            "new": after,
            "difference": difference,
            "recent": recent,
            "reasons": tuple(reasons),
        }
    )


def _drift(live: Judged, new: Judged) -> Drift | None:
    if not new.recent:
        return None
    before, after = (_scores(side, side.recent) for side in (live, new))
    return Drift(
        responses=len(new.recent),
        difference=float(np.mean(after - before)),
        distance=float(np.mean(np.abs(after - before))),
    )


def _side(side: Judged, figure: Interval) -> Side:
    return Side(
        figure=figure,
        ece=_ece(side),
        length_bias=_length_bias(side),
        mean_score=float(np.mean(_response_scores(side))),
    )


def _reasons(live: Side, new: Side, difference: Interval, settings: GateSettings) -> list[str]:
    reasons = []
    if difference.low <= -settings.margin:
        words = f"{settings.metric} {new.figure.value:.3f} against {live.figure.value:.3f}"
        span = f"the difference is {difference.value:+.3f} ({difference.low:+.3f} to "
        span += f"{difference.high:+.3f})"
        verdict = "worse by more than" if difference.high < 0 else "not shown to be within"
        reasons.append(f"{words}: {span}, {verdict} the margin of {settings.margin:g}")
    if live.ece is not None and new.ece is not None and new.ece > live.ece + settings.calibration:
        reasons.append(
            f"calibration error {new.ece:.3f} against {live.ece:.3f}; at most "
            f"{settings.calibration:g} more is allowed"
        )
    if new.length_bias is not None:
        # Scores that are all alike have no correlation with anything.
        before = live.length_bias or 0.0
        if abs(new.length_bias) > abs(before) + settings.length_bias:
            reasons.append(
                f"scores follow the number of steps: rank correlation {new.length_bias:+.2f}, of "
                f"the live version {before:+.2f}"
            )
    drift = new.mean_score - live.mean_score
    if abs(drift) > settings.drift:
        reasons.append(
            f"mean score {new.mean_score:.3f} against {live.mean_score:.3f}: further apart than "
            f"{settings.drift:g}"
        )
    return reasons


def _check_labels(responses: Sequence[Scored], metric: Metric) -> None:
    if metric == "first_error_f1":
        known = {first_error(r.labels) is None for r in responses if _is_judged(r.labels)}
        if known != {True, False}:
            raise InvalidInput(
                "first_error_f1 needs held-out responses with step labels, some with an error and "
                "some without; give labels or first_error, or choose another metric",
                param="metric",
            )
        return
    if {r.is_correct for r in responses} != {True, False}:
        raise InvalidInput(
            f"{metric} needs held-out responses that all say whether they are correct, some that "
            "are and some that are not",
            param="metric",
        )


def first_error(labels: Sequence[bool | None]) -> int | None:
    """The first step that is labelled wrong."""
    return next((place for place, label in enumerate(labels) if label is False), None)


def _is_judged(labels: Sequence[bool | None]) -> bool:
    """Whether it is known where the first error is, or that there is none."""
    place = first_error(labels)
    return None not in labels[:place]


def _response_scores(side: Judged) -> Floats:
    return _scores(side, side.responses)


def _scores(side: Judged, responses: Sequence[Scored]) -> Floats:
    aggregate = AGGREGATIONS[side.aggregation]
    return np.array([float(aggregate(response.scores)) for response in responses])


def _figure(side: Judged, metric: Metric, resamples: Resamples) -> tuple[float, Floats]:
    if metric == "first_error_f1":
        return _first_error_f1(side, resamples)
    labels = np.array([response.is_correct for response in side.responses], dtype=float)
    area, best = ranking_figures(_response_scores(side), labels, resamples)
    return area if metric == "auroc" else best


def _first_error_f1(side: Judged, resamples: Resamples) -> tuple[float, Floats]:
    """ProcessBench's F1 (arXiv 2412.06559 §4): the harmonic mean of two accuracies."""
    rows = np.zeros((len(side.responses), 4))
    for row, response in zip(rows, side.responses, strict=True):
        if not _is_judged(response.labels):
            continue
        wanted = first_error(response.labels)
        found = predicted_error(response.scores, side.threshold)
        column = 0 if wanted is not None else 2
        row[column], row[column + 1] = found == wanted, 1
    totals = resamples.sums(rows)
    return float(_f1(totals.sum(0)[None])[0]), _f1(resamples.weights @ totals)


def _f1(sums: Floats) -> Floats:
    """Of hits and counts of responses with an error and without, [draws, 4]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        erroneous, right = sums[:, 0] / sums[:, 1], sums[:, 2] / sums[:, 3]
        f1 = 2 * erroneous * right / (erroneous + right)
    return np.where(erroneous + right == 0, 0.0, f1)


def _ece(side: Judged) -> float | None:
    """Of the steps that have a label; of the responses where none has."""
    steps = [
        (response.problem, score, label)
        for response in side.responses
        for score, label in zip(response.scores, response.labels, strict=True)
        if label is not None
    ]
    if not steps:
        scores = _response_scores(side).tolist()
        steps = [
            (response.problem, score, response.is_correct)
            for response, score in zip(side.responses, scores, strict=True)
            if response.is_correct is not None
        ]
    if not steps:
        return None
    problems, scores, labels = zip(*steps, strict=True)
    return reliability(scores, labels, Resamples(problems, count=1)).ece.value


def _length_bias(side: Judged) -> float | None:
    """Spearman's rank correlation of score and number of steps, right and wrong ones apart."""
    scores = _response_scores(side)
    lengths = np.array([len(response.scores) for response in side.responses], dtype=float)
    right = np.array([response.is_correct is True for response in side.responses])
    found, counts = [], []
    for group in (right, ~right):
        if group.sum() >= 10 and len(set(lengths[group])) > 1 and len(set(scores[group])) > 1:
            ranks = np.corrcoef(_ranks(scores[group]), _ranks(lengths[group]))
            found.append(float(ranks[0, 1]))
            counts.append(int(group.sum()))
    return float(np.average(found, weights=counts)) if found else None


def _ranks(values: Floats) -> Floats:
    """Ranks with ties at their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[place]
