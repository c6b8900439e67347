"""What PRL's report says of made-up results."""

import pytest
from matplotlib.figure import Figure

from training.experiments.base import Result
from training.experiments.prl_report import PRIMARY, SAMPLES, passes, report_on, title

ARMS = ("grpo", "k3_0.1", "prl_0.03", PRIMARY, "prl_start_0.3")
BASE: Result = {"right": [8, 16] * 10, "entropy": 0.5, "kl": 0.0}


def found(right: int) -> list[Result]:
    """Five seeds; every second problem is twice as easy."""
    beside = {"entropy": 0.4, "kl": 1.0, "train_accuracy": 0.9}
    return [{"right": [right + seed, 2 * right] * 10, **beside} for seed in range(5)]


def test_pass_at_n_is_by_seed_and_problem() -> None:
    results: list[Result] = [{"right": [0, SAMPLES]}, {"right": [SAMPLES // 2, 1]}]
    assert passes(results, 1).tolist() == [[0, 1], [0.5, 1 / SAMPLES]]
    assert passes(results, SAMPLES).tolist() == [[0, 1], [1, 1]]
    # Of two, none right: 1/2 times 31/63.
    assert passes(results, 2)[1, 0] == pytest.approx(1 - 0.5 * 31 / 63)


@pytest.mark.parametrize(
    ("primary", "other", "verdict"),
    [
        (20, 10, "reproduced"),
        (10, 20, "partly reproduced"),
        (10, 10, "not reproduced"),
        (5, 10, "not reproduced"),
    ],
)
def test_the_verdict_stands_on_the_arm_that_was_named_before(
    primary: int, other: int, verdict: str
) -> None:
    arms = {arm: found(10) for arm in ARMS}
    report = report_on(BASE, arms | {PRIMARY: found(primary), "prl_0.03": found(other)})
    assert report.verdict == verdict
    figure = Figure()
    report.draw(figure)
    assert len(figure.axes) == 2
    for table in report.tables:
        assert {len(row) for row in table.rows} == {len(table.head)}


def test_arms_have_names_that_people_read() -> None:
    assert title("grpo") == "GRPO"
    assert title("k3_0.3") == "GRPO, k3 loss 0.3"
    assert title("kl_in_reward_0.1") == "GRPO, KL in the reward 0.1"
