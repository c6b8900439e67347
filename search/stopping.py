"""When to stop sampling: how likely it is that the leading answer would stay ahead.

Every candidate votes for its answer with a weight: 1 without a PRM, its calibrated probability of
being right with one. The shares of the two leading answers in what the policy would go on to
write have, seen from a flat prior, the posterior Beta(1 + first, 1 + second), where `first` and
`second` are the weights that they have so far. The leader stays ahead when its share of the two is
above one half: Aggarwal et al., "Let's Sample Step by Step: Adaptive-Consistency", arXiv 2305.11860
§3.2, whose counts these weights generalise. No models, no input, no state.
"""

import math
from collections.abc import Sequence


def stays_ahead(groups: Sequence[int | None], weights: Sequence[float] | None = None) -> float:
    """The probability in [0.5, 1] that the answer that leads now stays ahead of the second.

    `groups[i]` is the class of candidate i's answer, None where it gave none; such candidates have
    no say. `weights[i]`, in [0, 1], is its calibrated probability; without them each counts 1.
    0.5 where nobody gave an answer: nothing is known.

    >>> round(stays_ahead([0, 0, 0, 0]), 12)
    0.96875
    >>> stays_ahead([0, 1]), stays_ahead([None])
    (0.5, 0.5)
    """
    totals = totals_of(groups, weights)
    ranked = [*sorted(totals.values(), reverse=True), 0.0, 0.0]
    # The leader's share is no less than the other's; the integral may round to just below a half.
    return max(0.5, beats_half(1 + ranked[0], 1 + ranked[1]))


def is_decided(
    groups: Sequence[int | None], weights: Sequence[float] | None = None, *, threshold: float
) -> bool:
    """Whether to stop: the doubt 1 − `stays_ahead` is at most (1 − threshold) · √candidates.

    One candidate must pass `threshold` itself. Later, more doubt is tolerated: where so many have
    not decided it, many more would be needed, and few of such problems are won by them. It
    always stops by (2 · (1 − threshold))⁻² candidates. Measured against a constant threshold in
    docs/reranking.md.
    """
    doubt = 1 - stays_ahead(groups, weights)
    return bool(groups) and doubt <= (1 - threshold) * math.sqrt(len(groups))


def leader(groups: Sequence[int | None], weights: Sequence[float] | None = None) -> int | None:
    """The class with the largest weight, the first seen of equals; None where there is none."""
    totals = totals_of(groups, weights)
    return max(totals, key=lambda group: totals[group]) if totals else None


def totals_of(
    groups: Sequence[int | None], weights: Sequence[float] | None = None
) -> dict[int, float]:
    """The weight of each class, in the order in which they were first seen."""
    if weights is None:
        weights = [1.0] * len(groups)
    assert len(weights) == len(groups), f"{len(weights)} weights for {len(groups)} candidates"
    parts: dict[int, list[float]] = {}
    for group, weight in zip(groups, weights, strict=True):
        assert 0 <= weight <= 1, f"a weight of {weight} is outside of [0, 1]"
        if group is not None:
            parts.setdefault(group, []).append(weight)
    # Exactly rounded: which of two classes leads must not hang on the order of their members.
    return {group: math.fsum(members) for group, members in parts.items()}


def beats_half(first: float, second: float) -> float:
    """The probability that a Beta(first, second) variable, both ≥ 1, is above one half.

    That is the regularised incomplete beta function I_½(second, first).
    """
    assert first >= 1
    assert second >= 1
    if first == second:
        return 0.5
    if first < second:
        return 1 - beats_half(second, first)
    # The tail below one half is the small one here, and it is this that converges fast.
    log_front = (
        math.lgamma(first + second) - math.lgamma(first) - math.lgamma(second)
        - (first + second) * math.log(2) - math.log(first)
    )  # fmt: skip
    return 1 - math.exp(log_front) * _series(first, second)


def _series(a: float, b: float) -> float:
    """I_½(a, b) = front · Σₖ Πⱼ₌₁ᵏ (a+b+j−1)/(a+j) · ½ᵏ (Abramowitz and Stegun 26.5.4).

    For a ≥ b every factor is below 1 and tends to one half.
    """
    total = term = 1.0
    k = 0
    while term > 1e-17 * total:
        term *= 0.5 * (a + b + k) / (a + 1 + k)
        total += term
        k += 1
    return total
