"""What every rule of selection makes of the first k candidates, for every k at once.

The arithmetic is that of `search.selection.pick`, on arrays: the vote of a prefix is a cumulative
sum. Among equal answers the first seen wins, among equal candidates the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prm.aggregation import AGGREGATIONS, PlainAggregation
from search.reranking.pool import Bools, Floats, Ints, PoolProblem

Kind = Literal["first", "majority", "best", "weighted", "oracle"]
# A vote weighs between 0 and 1: a sum of step scores is none.
WEIGHING: tuple[PlainAggregation, ...] = ("last", "min", "mean", "product", "max")


@dataclass(frozen=True, slots=True)
class Rule:
    """`by` says what scores a candidate: an aggregation, or "calibrated"; None where nothing."""

    kind: Kind
    by: str | None = None

    @property
    def label(self) -> str:
        """As shown."""
        if self == Rule("weighted", "calibrated"):
            return "calibrated"
        plain = {"first": "pass@1", "majority": "majority", "oracle": "oracle"}
        return plain.get(self.kind, f"{self.kind} by {self.by}")


CALIBRATED = Rule("weighted", "calibrated")
MAJORITY = Rule("majority")
WEIGHTED_LAST = Rule("weighted", "last")
RULES = (
    Rule("first"),
    MAJORITY,
    *(Rule("best", name) for name in AGGREGATIONS),
    Rule("best", "calibrated"),
    *(Rule("weighted", name) for name in WEIGHING),
    CALIBRATED,
    Rule("oracle"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefixes:
    """A vote over prefixes; entry k - 1 of each array is about the first k candidates.

    `first` and `second` are the weights of the two leading answers, 0 where there is none;
    `is_right` whether the winner is right.
    """

    first: Floats
    second: Floats
    is_right: Bools


def weights_of(problem: PoolProblem, rule: Rule, calibrated: Floats) -> Floats:
    """What each candidate scores by this rule, [candidate]."""
    if rule.by is None:
        return np.ones(len(problem))
    if rule.by == "calibrated":
        return calibrated
    aggregate = next(of for name, of in AGGREGATIONS.items() if name == rule.by)
    return np.array([aggregate(scores) for scores in problem.scores], dtype=np.float64)


def right_by(problem: PoolProblem, rule: Rule, weights: Floats, order: Ints) -> Bools:
    """Whether the rule's winner among the first k candidates of `order` is right, [k - 1]."""
    is_right = problem.is_right[order]
    match rule.kind:
        case "first":
            return np.repeat(is_right[:1], len(order))
        case "oracle":
            return np.maximum.accumulate(is_right)
        case "best":
            return is_right[_first_best(weights[order])]
        case "majority" | "weighted":
            return vote(problem, weights, order).is_right


def vote(problem: PoolProblem, weights: Floats, order: Ints) -> Prefixes:
    """The vote over every prefix of `order`. Without an answer yet, the best candidate wins."""
    groups, mine, is_right = problem.groups[order], weights[order], problem.is_right[order]
    known, seen_at = np.unique(groups[groups >= 0], return_index=True)
    known = known[np.argsort(seen_at)]  # so that the first of equals is the first seen
    count = len(order)
    if not len(known):
        zeros = np.zeros(count)
        return Prefixes(first=zeros, second=zeros, is_right=is_right[_first_best(mine)])
    belongs = groups[:, None] == known[None, :]
    totals = np.cumsum(belongs * mine[:, None], axis=0)
    ahead = totals.argmax(axis=1)
    # The winner is the best of its answer so far; where answers are graded, all of it are alike.
    best = np.stack([_first_best(np.where(member, mine, -1.0)) for member in belongs.T], axis=1)
    winner = best[np.arange(count), ahead]
    nobody = np.cumsum(groups >= 0) == 0
    winner = np.where(nobody, _first_best(mine), winner)
    ranked = np.sort(np.column_stack([totals, np.zeros(count)]), axis=1)
    return Prefixes(first=ranked[:, -1], second=ranked[:, -2], is_right=is_right[winner])


def orders_of(problem: PoolProblem, count: int, seed: Sequence[int]) -> list[Ints]:
    """The recorded order where `count` is 0, else so many random ones."""
    if count == 0:
        return [np.arange(len(problem))]
    rng = np.random.default_rng(seed)
    return [rng.permutation(len(problem)) for _ in range(count)]


def _first_best(ranks: Floats) -> Ints:
    """The place of the highest rank so far, the first of equals, for every prefix."""
    highest = np.maximum.accumulate(ranks)
    is_new = np.ones(len(ranks), dtype=bool)
    is_new[1:] = ranks[1:] > highest[:-1]
    return np.maximum.accumulate(np.where(is_new, np.arange(len(ranks)), 0))
