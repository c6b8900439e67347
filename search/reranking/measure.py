"""Every selection on recorded candidates: accuracy against candidates and cost, with intervals.

What is fitted is cross-validated over problems: a problem's candidates are weighed by a selector,
and its sampling stopped by a threshold, that were fitted to other folds alone. All intervals are
percentile bootstraps over problems, all on the same resamples.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from prm.errors import InvalidInput
from prm.evaluation.reliability import Interval, Resamples
from search.reranking.fits import (
    INNER_FOLDS,
    Report,
    cross_fit,
    fit_selector,
    fold_indices,
    probabilities,
)
from search.reranking.pool import Bools, Floats, Pool, PoolProblem, Unit
from search.reranking.rules import (
    CALIBRATED,
    MAJORITY,
    RULES,
    WEIGHTED_LAST,
    Rule,
    orders_of,
    right_by,
    weights_of,
)
from search.reranking.waves import THRESHOLDS, dearest, replay


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WidthPoint(_Record):
    """A rule with so many candidates, or all that there are: mean over orders and problems."""

    candidates: int
    mean_cost: float
    accuracy: Interval


class RuleCurve(_Record):
    """A rule over all widths, and with all candidates in recorded order, where the first recorded
    of equals wins; `gain` is that minus majority's.
    """

    label: str
    points: tuple[WidthPoint, ...]
    recorded: Interval
    gain: Interval


class Adaptive(_Record):
    """Sampling in waves, the threshold cross-validated.

    `cost` is the part of what all candidates cost; `gain` is minus majority with all of them.
    """

    label: str
    order: str
    wave: int
    thresholds: tuple[float, ...]
    accuracy: Interval
    cost: Interval
    candidates: float
    gain: Interval


class Reranking(_Record):
    """Everything that `rung eval rerank` shows."""

    problems: int
    candidates: int
    unit: Unit
    folds: int
    orders: int
    seed: int
    budget: float
    curves: tuple[RuleCurve, ...]
    calibrated_minus_weighted_by_last: Interval
    adaptive: tuple[Adaptive, ...]


class _Draws:
    """The mean of one value per problem, and the same in every resample."""

    def __init__(self, problems: int) -> None:
        self._resamples = Resamples([f"{number:09d}" for number in range(problems)])

    def interval(self, values: Floats) -> Interval:
        """`values` is [problem]."""
        weights = self._resamples.weights
        return self._resamples.interval(
            float(values.mean()), weights @ values / weights.sum(axis=1)
        )


def measure(
    pool: Pool, *, folds: int = 10, orders: int = 20, wave: int = 1,
    budget: float = 0.24, seed: int = 0,
    report: Report = lambda: None,
) -> Reranking:  # fmt: skip
    """All rules and both adaptive stops. `report` is called `steps_of` times.

    Widths are means over `orders` random orders; with 0, of the recorded one.
    `budget` is the part of the cost of all candidates
    that sampling in waves may spend. Raises InvalidInput where folds leave nothing to fit.
    """
    problems = pool.problems
    try:
        calibrated = cross_fit(problems, folds=folds, seed=seed, report=report)
    except ValueError as error:
        raise InvalidInput(f"{folds} folds: {error}; give more problems") from error
    draws = _Draws(len(problems))
    widths = _widths(pool.widest)
    right: dict[Rule, Floats] = {rule: np.zeros((len(problems), len(widths))) for rule in RULES}
    recorded: dict[Rule, Floats] = {rule: np.zeros(len(problems)) for rule in RULES}
    costs = np.zeros((len(problems), len(widths)))
    for row, problem in enumerate(problems):
        shuffled = orders_of(problem, orders, (seed, row))
        for rule in RULES:
            weights = weights_of(problem, rule, calibrated[row])
            found = [_at(right_by(problem, rule, weights, order), widths) for order in shuffled]
            right[rule][row] = np.mean(found, axis=0)
            as_it_was = right_by(problem, rule, weights, np.arange(len(problem)))
            recorded[rule][row] = as_it_was[-1]
        costs[row] = np.mean([_at(np.cumsum(problem.costs[o]), widths) for o in shuffled], axis=0)
        report()
    everything = recorded[MAJORITY]
    adaptive = [
        one
        for by_votes in (False, True)
        for one in _adaptive(
            problems, everything, folds=folds, orders=list(dict.fromkeys((0, orders))), wave=wave,
            budget=budget, seed=seed, by_votes=by_votes, draws=draws, report=report,
        )
    ]  # fmt: skip
    return Reranking(
        problems=len(problems),
        candidates=sum(map(len, problems)),
        unit=pool.unit,
        folds=folds,
        orders=orders,
        seed=seed,
        curves=tuple(
            RuleCurve(
                label=rule.label,
                points=_points(right[rule], costs, widths, draws),
                recorded=draws.interval(recorded[rule]),
                gain=draws.interval(recorded[rule] - everything),
            )
            for rule in RULES
        ),
        calibrated_minus_weighted_by_last=draws.interval(
            recorded[CALIBRATED] - recorded[WEIGHTED_LAST]
        ),
        budget=budget,
        adaptive=tuple(adaptive),
    )


def steps_of(pool: Pool, folds: int) -> int:
    """How many times `measure` reports."""
    count = min(folds, len(pool.problems))
    return 3 * count + len(pool.problems)


def threshold_for(
    problems: Sequence[PoolProblem], weights: Sequence[Floats], *, orders: int, wave: int,
    budget: float, seed: int,
) -> float:  # fmt: skip
    """The highest threshold that, with these weights of votes, costs at most `budget` here."""
    stops = [
        replay(problem, each, orders_of(problem, orders, (seed, row)), wave=wave)
        for row, (problem, each) in enumerate(zip(problems, weights, strict=True))
    ]
    return float(THRESHOLDS[dearest(stops, budget)])


def thresholds_for(
    problems: Sequence[PoolProblem], *, orders: int, wave: int, budget: float, folds: int, seed: int
) -> tuple[float, float]:
    """For calibrated votes and for plain ones, chosen on all these problems."""
    plain = [np.ones(len(problem)) for problem in problems]
    calibrated, by_votes = (
        threshold_for(problems, weights, orders=orders, wave=wave, budget=budget, seed=seed)
        for weights in (cross_fit(problems, folds=folds, seed=seed), plain)
    )
    return calibrated, by_votes


def _points(
    right: Floats, costs: Floats, widths: Sequence[int], draws: _Draws
) -> tuple[WidthPoint, ...]:
    return tuple(
        WidthPoint(
            candidates=width,
            mean_cost=float(costs[:, place].mean()),
            accuracy=draws.interval(right[:, place]),
        )
        for place, width in enumerate(widths)
    )


def _adaptive(
    problems: Sequence[PoolProblem], everything: Floats, *, folds: int, orders: Sequence[int],
    wave: int, budget: float, seed: int, by_votes: bool, draws: _Draws, report: Report,
) -> list[Adaptive]:  # fmt: skip
    """Per fold: fit weights and choose the threshold on the others, then replay the fold."""
    is_right, cost, count = (np.zeros((len(orders), len(problems))) for _ in range(3))
    chosen: list[list[float]] = [[] for _ in orders]
    for held_out in fold_indices(problems, folds, seed):
        inside = [problem for index, problem in enumerate(problems) if index not in held_out]
        unseen = [problems[index] for index in held_out]
        known, weights = (
            ([np.ones(len(problem)) for problem in some] for some in (inside, unseen))
            if by_votes
            else (
                cross_fit(inside, folds=min(folds, INNER_FOLDS), seed=seed),
                probabilities(fit_selector(inside, seed=seed), unseen),
            )
        )
        for kind, many in enumerate(orders):
            threshold = threshold_for(
                inside, known, orders=many, wave=wave, budget=budget, seed=seed
            )
            chosen[kind].append(threshold)
            place = int(np.searchsorted(THRESHOLDS, threshold))
            for index, problem, each in zip(held_out, unseen, weights, strict=True):
                stops = replay(problem, each, orders_of(problem, many, (seed, index)), wave=wave)
                is_right[kind, index] = stops.is_right[place]
                cost[kind, index] = stops.costs[place]
                count[kind, index] = stops.candidates[place]
        report()
    return [
        Adaptive(
            label="by votes" if by_votes else "calibrated",
            order="recorded" if many == 0 else "random",
            wave=wave,
            thresholds=tuple(chosen[kind]),
            accuracy=draws.interval(is_right[kind]),
            cost=draws.interval(cost[kind]),
            candidates=float(count[kind].mean()),
            gain=draws.interval(is_right[kind] - everything),
        )
        for kind, many in enumerate(orders)
    ]


def _widths(widest: int) -> list[int]:
    """1, 2, 4, … and all."""
    return [*(2**power for power in range(widest.bit_length()) if 2**power < widest), widest]


def _at(prefixes: Floats | Bools, widths: Sequence[int]) -> Floats:
    """The values at these widths; a problem with fewer candidates has what it has with all."""
    places = np.minimum(widths, len(prefixes)) - 1
    return np.asarray(prefixes, dtype=np.float64).take(places)
