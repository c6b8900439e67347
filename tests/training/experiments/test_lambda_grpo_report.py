"""What λ-GRPO's report says of made-up results."""

import pytest
from matplotlib.figure import Figure

from training.experiments.base import Result, Unit
from training.experiments.lambda_grpo_report import ARMS, report_on
from training.experiments.tree_runs import ARMS as TREE_ARMS
from training.experiments.tree_runs import LEARNERS, TREES


def tree(found: dict[str, int]) -> Result:
    """Of twenty runs on each tree, so many found the target."""
    row = {arm: [1.0] * found[arm] + [0.0] * (20 - found[arm]) for arm in TREE_ARMS}
    return {"shares": [row for _ in TREES]}


def learned(accuracy: list[float]) -> Result:
    """One run of the language model."""
    peak = max(accuracy)
    return {
        "steps": [20, 40, 60],
        "accuracy": accuracy,
        "peak": peak,
        "peak_step": 20 * (1 + accuracy.index(peak)),
        "area": sum(accuracy) / 3,
        "shared_tokens": None,
        "grad_norm": 1.0,
        "phase_seconds": {"rollouts": 0.2, "credit": 0.002, "update": 0.2},
    }


@pytest.mark.parametrize(
    ("on_tree", "curve", "verdict"),
    [
        (20, [0.4, 0.9, 0.8], "reproduced"),
        (20, [0.1, 0.4, 0.5], "partly reproduced"),
        (12, [0.4, 0.9, 0.8], "partly reproduced"),
        (12, [0.1, 0.4, 0.5], "not reproduced"),
        (2, [0.1, 0.1, 0.1], "not reproduced"),
    ],
)
def test_the_verdict_asks_for_tree_and_model(
    on_tree: int, curve: list[float], verdict: str
) -> None:
    counts = {"grpo": 12, "lambda_grpo": on_tree, "grpo_matched": 12}
    results = {Unit(f"tree_{name}", 0): tree(counts) for name in LEARNERS}
    for seed in range(3):
        results[Unit("base", seed)] = {"accuracy": 0.05}
        for arm in ARMS:
            drift = 0.01 * seed
            own = curve if arm.startswith("lambda") else [0.2, 0.4, 0.5]
            results[Unit(arm, seed)] = learned([value + drift for value in own])
    report = report_on(results)
    assert report.verdict == verdict
    figure = Figure()
    report.draw(figure)
    assert len(figure.axes) == 2
    for table in report.tables:
        assert {len(row) for row in table.rows} == {len(table.head)}
