"""Sampling in waves, replayed: when each threshold would have stopped, and what that is worth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.reranking.pool import Floats, Ints, PoolProblem
from search.reranking.rules import vote

THRESHOLDS = np.round(np.arange(0.5, 0.9951, 0.005), 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stops:
    """What every threshold of `THRESHOLDS` gave for one problem, mean over orders; [threshold].

    `costs` is the part of the cost of all the problem's candidates, `candidates` how many.
    """

    is_right: Floats
    costs: Floats
    candidates: Floats


def replay(
    problem: PoolProblem,
    weights: Floats,
    orders: Sequence[Ints],
    *,
    wave: int,
    is_constant: bool = False,
) -> Stops:
    """Stop after the first wave where `search.stopping.is_decided`, at the latest with all.

    `is_constant` stops where `stays_ahead` reaches the threshold itself, as the paper does.
    """
    count = len(problem)
    found = [vote(problem, weights, order) for order in orders]
    ends = np.append(np.arange(wave, count, wave), count)  # candidates at each boundary
    first, second = (
        np.stack([getattr(each, name)[ends - 1] for each in found]) for name in ("first", "second")
    )
    doubts = second_overtakes(first, second)  # [order, boundary]
    tolerated = np.ones(len(ends)) if is_constant else np.sqrt(ends)
    is_enough = doubts[:, None, :] <= (1 - THRESHOLDS)[None, :, None] * tolerated
    is_enough[:, :, -1] = True
    stopped = ends[is_enough.argmax(axis=2)] - 1  # [order, threshold]
    spent = np.stack([np.cumsum(problem.costs[order]) for order in orders])
    is_right = np.stack([each.is_right for each in found])
    return Stops(
        is_right=np.take_along_axis(is_right, stopped, axis=1).mean(axis=0),
        costs=np.take_along_axis(spent, stopped, axis=1).mean(axis=0) / spent[0, -1],
        candidates=stopped.mean(axis=0) + 1,
    )


def dearest(stops: Sequence[Stops], budget: float) -> int:
    """The place of the highest threshold that costs at most `budget` over these problems.

    The lowest where none does. Cost hardly varies between samples of problems and accuracy does: a
    threshold that is chosen by cost alone is not chosen by luck.
    """
    costs = np.mean([each.costs for each in stops], axis=0)
    affordable = np.flatnonzero(costs <= budget)
    return int(affordable[-1]) if len(affordable) else 0


def second_overtakes(first: Floats, second: Floats) -> Floats:
    """1 − `search.stopping.beats_half`(1 + first, 1 + second) of arrays, first ≥ second."""
    a, b = 1 + first, 1 + second
    gamma = np.frompyfunc(math.lgamma, 1, 1)
    logs = np.asarray(gamma(a + b) - gamma(a) - gamma(b), dtype=np.float64)
    front = np.exp(logs - (a + b) * math.log(2) - np.log(a))
    total, term, k = np.ones_like(a), np.ones_like(a), 0
    while term.max() > 1e-15:
        term = term * (0.5 * (a + b + k) / (a + 1 + k))
        total += term
        k += 1
    doubts: Floats = np.minimum(front * total, 0.5)
    return doubts
