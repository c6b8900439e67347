"""Is what is called 80 % likely right 80 % of the time? ECE, Brier score, log loss, bins.

Predictions and labels come from problems, several from each, and those of one problem are not
independent: every interval is a percentile bootstrap over problems (Efron and Tibshirani 1993,
chapter 13). ECE is the expected calibration error of Guo et al., arXiv 1706.04599 §2, with equally
wide bins. It is biased upwards in small samples, and its bootstrap interval more so (Kumar et al.,
arXiv 1909.10155 §5): compare it between predictions on the same data. Brier score and log loss
are proper scores, and have no such bias.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

NUM_BINS = 10
NUM_RESAMPLES = 2000
# The log loss of a certainty that is wrong is infinite; this is as sure as a prediction may be.
MIN_LIKELIHOOD = 1e-6

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Interval(_Record):
    """A figure and its 95 % interval."""

    value: Finite
    low: Finite
    high: Finite


class Bin(_Record):
    """The predictions in [low, high): how many, their mean, and how often they came true."""

    low: Finite
    high: Finite
    count: int
    prediction: Finite | None
    frequency: Finite | None


class Reliability(_Record):
    """How predictions of a yes-or-no label came true; lower is better in all three figures."""

    ece: Interval
    brier: Interval
    log_loss: Interval
    bins: tuple[Bin, ...]


class Change(_Record):
    """After minus before, on the same resamples; below zero is better."""

    ece: Interval
    brier: Interval
    log_loss: Interval


class Comparison(_Record):
    """The same labels predicted before calibration and after."""

    before: Reliability
    after: Reliability
    change: Change


class Resamples:
    """Weights of the bootstrap: how often each problem was drawn. The same for all figures."""

    def __init__(self, problems: Sequence[str], *, count: int = NUM_RESAMPLES, seed: int = 0):
        """`problems[i]` says which problem the i-th prediction belongs to."""
        names, self.problem_of = np.unique(np.asarray(problems), return_inverse=True)
        rng = np.random.default_rng(seed)
        shares = np.full(len(names), 1 / len(names))
        self.weights = rng.multinomial(len(names), shares, size=count).astype(np.float64)

    def sums(self, values: Floats) -> Floats:
        """Sums per problem [problem, …] of values [prediction, …]."""
        totals = np.zeros((self.weights.shape[1], *values.shape[1:]))
        np.add.at(totals, self.problem_of, values)
        return totals

    def interval(self, value: float, draws: Floats) -> Interval:
        """The middle 95 % of what the resamples gave; those without a value do not count."""
        known = draws[np.isfinite(draws)]
        low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (value, value)
        return Interval(value=value, low=float(low), high=float(high))


def compare(
    before: Sequence[float], after: Sequence[float], labels: Sequence[bool], resamples: Resamples
) -> Comparison:
    """Both predictions of the same labels, and what changed."""
    figures = {
        name: _figures(np.asarray(predictions, float), np.asarray(labels, float), resamples)
        for name, predictions in (("before", before), ("after", after))
    }
    change = {
        figure: resamples.interval(
            figures["after"][figure][0] - figures["before"][figure][0],
            figures["after"][figure][1] - figures["before"][figure][1],
        )
        for figure in ("ece", "brier", "log_loss")
    }
    return Comparison(
        before=reliability(before, labels, resamples),
        after=reliability(after, labels, resamples),
        change=Change(**change),
    )


def reliability(
    predictions: Sequence[float], labels: Sequence[bool], resamples: Resamples
) -> Reliability:
    """Figures and bins of predictions in [0, 1], at least one. NaN is a ValueError."""
    found, truth = np.asarray(predictions, float), np.asarray(labels, float)
    figures = {
        name: resamples.interval(value, draws)
        for name, (value, draws) in _figures(found, truth, resamples).items()
    }
    return Reliability(**figures, bins=bins_of(found, truth))


def bins_of(predictions: Floats, labels: Floats) -> tuple[Bin, ...]:
    """Ten equally wide bins, empty ones among them."""
    place = _bin_of(predictions)
    counts = np.bincount(place, minlength=NUM_BINS)
    sums = np.bincount(place, weights=predictions, minlength=NUM_BINS)
    hits = np.bincount(place, weights=labels, minlength=NUM_BINS)
    return tuple(
        Bin(
            low=number / NUM_BINS,
            high=(number + 1) / NUM_BINS,
            count=int(count),
            prediction=sums[number] / count if count else None,
            frequency=hits[number] / count if count else None,
        )
        for number, count in enumerate(counts)
    )


def _figures(
    predictions: Floats, labels: Floats, resamples: Resamples
) -> dict[str, tuple[float, Floats]]:
    """Each figure on the data as they are, and on every resample."""
    if not (len(predictions) == len(labels) == len(resamples.problem_of) > 0):
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels")
    if not np.all((predictions >= 0) & (predictions <= 1)):
        raise ValueError("a prediction is not in [0, 1]")
    bounded = np.clip(predictions, MIN_LIKELIHOOD, 1 - MIN_LIKELIHOOD)
    losses = -np.where(labels == 1, np.log(bounded), np.log1p(-bounded))
    gaps = np.zeros((len(labels), NUM_BINS))
    gaps[np.arange(len(labels)), _bin_of(predictions)] = labels - predictions
    per_problem = resamples.sums(
        np.column_stack([np.ones(len(labels)), (labels - predictions) ** 2, losses, gaps])
    )
    observed = np.ones((1, per_problem.shape[0]))
    values, draws = (_of_sums(weights @ per_problem) for weights in (observed, resamples.weights))
    return {name: (float(values[name][0]), draws[name]) for name in values}


def _of_sums(sums: Floats) -> dict[str, Floats]:
    count = sums[:, 0]
    return {
        "ece": np.abs(sums[:, 3:]).sum(axis=1) / count,
        "brier": sums[:, 1] / count,
        "log_loss": sums[:, 2] / count,
    }


def _bin_of(predictions: Floats) -> Ints:
    return np.minimum((predictions * NUM_BINS).astype(np.int64), NUM_BINS - 1)
