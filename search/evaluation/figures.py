"""What the runs amount to: accuracy against tokens, and differences at equal tokens.

All intervals are 95 %, percentile bootstraps over problems (Efron and Tibshirani 1993, chapter 13);
every figure is taken on the same resamples, so that differences are paired.

"At equal tokens": where the strategy generated t tokens a problem, the baseline's accuracy at t is
read off the line through its own measured widths, over the logarithm of tokens, in which
accuracy grows (Snell et al., arXiv 2408.03314, figure 3). In each resample anew, tokens and all.
Outside of what the baseline was measured at there is no difference to be told.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue

from prm.evaluation.reliability import Floats, Interval, Resamples
from search.evaluation.runs import ArmRun

BASELINES = ("best of n", "weighted", "majority")


class Point(BaseModel):
    """One arm, measured.

    `oracle` is the share of problems with a right answer among the candidates that it ended with:
    what a perfect choice would reach. `right_share` is the mean share of right ones among their
    answers. `mean_read_tokens` are those that the PRM was shown, whether its cache had them or not:
    how many it computed depends on what ran before. `undecided` counts answers that could not be
    compared: taken as wrong.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    label: str
    strategy: dict[str, JsonValue]
    uses_prm: bool
    accuracy: Interval
    oracle: Interval
    right_share: Interval
    mean_tokens: Interval
    mean_read_tokens: float
    wall_s: float
    undecided: int
    gain: Interval | None


class Difference(BaseModel):
    """An arm's accuracy minus a baseline's at equal tokens, in the same resamples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    baseline: str
    accuracy: Interval


class Report(BaseModel):
    """What was measured over `problems` problems."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    problems: int
    points: tuple[Point, ...]
    differences: tuple[Difference, ...]


class _Column:
    """An arm's accuracy and tokens, on the data as they are (row 0) and on every resample."""

    def __init__(self, run: ArmRun, weights: Floats) -> None:
        self.run = run
        self._weights = weights
        self.accuracy = self.mean([outcome.is_correct for outcome in run.outcomes])
        # A strategy that was given nothing to write still has a place on a logarithmic axis.
        tokens = self.mean([outcome.generated_tokens for outcome in run.outcomes])
        self.tokens = np.maximum(tokens, 1.0)

    def mean(self, values: Sequence[float]) -> Floats:
        """Of one number per problem, on the data as they are and on every resample."""
        found: Floats = self._weights @ np.array(values, float) / len(values)
        return found


def measure(runs: Sequence[ArmRun], *, has_prm: bool) -> Report:
    """Points in the order of the runs, and what each gains over the baselines that were run."""
    count = len(runs[0].outcomes)
    resamples = Resamples([str(number) for number in range(count)])
    # `Resamples` names problems in an order of its own; here every problem has one row.
    weights = np.vstack([np.ones(count), resamples.weights])[:, resamples.problem_of]
    columns = [_Column(run, weights) for run in runs]
    votes = [column for column in columns if column.run.arm.name == "majority"]
    points = tuple(_point(column, votes, has_prm=has_prm) for column in columns)
    differences = []
    for name in BASELINES:
        line = [column for column in columns if column.run.arm.name == name]
        for column in columns:
            label, is_held = column.run.arm.label, column.run.arm.name not in (name, "pass@1")
            if is_held and (found := at_equal_tokens(column, line)) is not None:
                differences.append(Difference(label=label, baseline=name, accuracy=found))
    return Report(problems=count, points=points, differences=tuple(differences))


def at_equal_tokens(column: _Column, line: Sequence[_Column]) -> Interval | None:
    """Accuracy of `column` minus that of a baseline's line at as many tokens.

    None where the baseline was not measured at fewer and at more tokens than that.
    """
    line = sorted(line, key=lambda each: each.tokens[0])
    if not line or not line[0].tokens[0] <= column.tokens[0] <= line[-1].tokens[0]:
        return None
    tokens = np.log(np.stack([each.tokens for each in line], axis=1))
    accuracy = np.stack([each.accuracy for each in line], axis=1)
    at = np.log(column.tokens)
    theirs = np.array(
        [np.interp(x, xs, ys) for x, xs, ys in zip(at, tokens, accuracy, strict=True)]
    )
    return _interval(column.accuracy - theirs)


def _point(column: _Column, votes: Sequence[_Column], *, has_prm: bool) -> Point:
    run, outcomes = column.run, column.run.outcomes
    return Point(
        name=run.arm.name,
        label=run.arm.label,
        strategy=dict(run.arm.settings),
        uses_prm=run.arm.uses_prm(has_prm=has_prm),
        accuracy=_interval(column.accuracy),
        oracle=_interval(column.mean([o.right_share > 0 for o in outcomes])),
        right_share=_interval(column.mean([o.right_share for o in outcomes])),
        mean_tokens=_interval(column.tokens),
        mean_read_tokens=sum(o.read_tokens for o in outcomes) / len(outcomes),
        wall_s=run.wall_s,
        undecided=sum(outcome.is_undecided for outcome in outcomes),
        gain=_gain(column, votes),
    )


def _gain(column: _Column, votes: Sequence[_Column]) -> Interval | None:
    """Over majority voting at the widest width that generates no more tokens."""
    if column.run.arm.name in ("majority", "pass@1"):
        return None
    paid = [vote for vote in votes if vote.tokens[0] <= column.tokens[0]]
    if not paid:
        return None
    widest = max(paid, key=lambda vote: vote.tokens[0])
    return _interval(column.accuracy - widest.accuracy)


def _interval(draws: Floats) -> Interval:
    """From the figure itself and its resamples."""
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return Interval(value=float(draws[0]), low=float(low), high=float(high))
