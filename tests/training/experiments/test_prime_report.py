"""What PRIME's report makes of curves that are known."""

from typing import Any

import pytest

from training.experiments.prime_report import (
    BASE,
    ENDS,
    OFFLINE,
    TITLES,
    _areas_by_tokens,
    _steps_to,
    report_on,
)

SEEDS = 4


def run_of(accuracy: list[float], first_pairs: float, last_pairs: float) -> dict[str, Any]:
    steps = [10 * (place + 1) for place in range(len(accuracy))]
    pairs = [[step, first_pairs] for step in range(1, ENDS + 1)]
    pairs += [[ENDS + step, last_pairs] for step in range(1, ENDS + 1)]
    return {
        "steps": steps,
        "accuracy": accuracy,
        "tokens": [100.0 * step for step in steps],
        "pair_accuracy": pairs,
        "best_of_n": accuracy,
    }


def results(**arms: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Four seeds; a thousandth apart, so that no interval is empty."""
    plain = run_of([0.2, 0.4], 0.5, 0.5)
    found: dict[str, list[dict[str, Any]]] = {
        BASE: [{"accuracy": 0.0}],
        OFFLINE: [{"tokens": 1000.0, "pair_accuracy": [0.5, *[0.9] * ENDS]}],
    }
    for arm in TITLES:
        run = arms.get(arm, plain)
        found[arm] = [
            run | {"accuracy": [value + seed * ({"prime": 0.001}.get(arm, 0.0))
                                for value in run["accuracy"]]}
            for seed in range(SEEDS)
        ]  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("online", "prime", "verdict"),
    [
        (0.9, [0.4, 0.8], "reproduced"),
        (0.6, [0.4, 0.8], "partly reproduced"),
        (0.9, [0.1, 0.2], "partly reproduced"),
        (0.6, [0.1, 0.2], "not reproduced"),
    ],
)
def test_both_halves_of_the_claim_are_judged(
    online: float, prime: list[float], verdict: str
) -> None:
    found = report_on(
        results(
            prime=run_of(prime, 0.5, 0.9),
            prime_warm=run_of([0.2, 0.4], 0.8, online),
            prime_frozen=run_of([0.2, 0.4], 0.8, 0.6),
        )
    )
    assert found.verdict == verdict
    assert ("more sample-efficient" in found.sentence) == (prime[0] > 0.2)
    assert ("stays ahead of the frozen one" in found.sentence) == (online > 0.6)
    assert "both had 0.900." in found.sentence


def test_steps_to_a_goal_lie_between_evaluations() -> None:
    found, never = _steps_to(results(prime=run_of([0.4, 0.6], 0.5, 0.5)), "prime", 0.5)
    assert found[0] == pytest.approx(15)
    assert never == 0
    found, never = _steps_to(results(), "rloo", 0.5)
    assert (found, never) == ([20] * SEEDS, SEEDS)


def test_rollouts_that_a_prm_was_trained_on_come_first() -> None:
    told = results()
    # 1,000 of 2,000 tokens pass before the first step; then 0 → .2 over the other 1,000.
    assert _areas_by_tokens(told, "prime_frozen")[0] == pytest.approx(0.05)
    assert _areas_by_tokens(told, "rloo")[0] == pytest.approx((0.1 + 0.3) / 2)


def test_an_arm_whose_prm_takes_all_tokens_has_no_area() -> None:
    told = results()
    told[OFFLINE][0]["tokens"] = 2000.0
    assert _areas_by_tokens(told, "prime_frozen") == []
    efficiency = report_on(told).tables[0]
    assert [row[3] == "–" for row in efficiency.rows] == [
        arm in ("prime_warm", "prime_frozen") for arm in TITLES
    ]
