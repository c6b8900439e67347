"""Figures of policies and of scorers on worked numbers."""

from math import exp

import pytest

from prm.aggregation import AGGREGATIONS, predicted_error
from prm.families.base import sigmoid
from search.selection import pick
from search.stopping import totals_of
from tests.training.vectors import block
from training.evaluate import step_accuracy, threshold_hits
from training.metrics import average_at_n, pass_at_k, pass_at_n, weighted_by_size
from training.types import Problem, Rollout


def test_average_and_pass_at_n() -> None:
    inputs, expected = block("metrics.avg_and_pass_at_n")
    is_correct = [[value > 0 for value in row] for row in inputs["correct"]]
    assert average_at_n(is_correct) == expected["avg_at_8"]
    assert pass_at_n(is_correct) == expected["pass_at_8"]


def test_pass_at_k_without_bias() -> None:
    inputs, expected = block("metrics.pass_at_k_unbiased")
    for correct, row in zip(inputs["c"], expected["pass_at_k"], strict=True):
        ours = [pass_at_k(inputs["n"], correct, k) for k in inputs["k"]]
        assert ours == pytest.approx(row, abs=1e-9)


def test_pass_at_k_of_thousands_of_samples_is_a_number() -> None:
    assert pass_at_k(10_000, 3, 5_000) == pytest.approx(0.875, abs=1e-3)


def test_the_average_over_benchmarks_counts_items() -> None:
    inputs, expected = block("metrics.size_weighted_average")
    sizes = [int(size) for size in inputs["sizes[MATH500,Minerva,Olympiad,AMC23,AIME24]"]]
    for place, (key, name) in enumerate(
        (("PRL_Qwen1.5B_pass8", "pass8_5avg"), ("PRL_Qwen1.5B_avg8", "avg8_5avg"))
    ):
        ours = weighted_by_size(inputs[key], sizes)
        assert ours == pytest.approx(expected[name])
        assert round(ours, 2) == expected["published"][place]


def test_first_errors_and_their_f1() -> None:
    inputs, expected = block("processbench.first_error_f1")
    scores, threshold = inputs["step_scores"], inputs["threshold"]
    predicted = [predicted_error(steps, threshold) for steps in scores]
    assert [-1 if error is None else error for error in predicted] == expected["pred"]
    groups = [
        [
            Rollout(
                problem=Problem(text=str(number), answer=""),
                steps=tuple("x" for _ in steps),
                is_correct=label < 0,
                first_error=None if label < 0 else label,
            )
        ]
        for number, (steps, label) in enumerate(
            zip(scores, inputs["first_error_label"], strict=True)
        )
    ]
    hits = threshold_hits(groups, [[steps] for steps in scores], threshold)
    found = step_accuracy(groups, hits)
    assert found.erroneous.mean == pytest.approx(expected["acc_error"])
    assert found.correct.mean == pytest.approx(expected["acc_correct"])
    assert found.f1.mean == pytest.approx(expected["F1"])


def test_selection_by_mean_token_reward() -> None:
    inputs, expected = block("tts.selection")
    answers, rewards = inputs["answers"], inputs["mean_token_reward"]
    classes = [answers.index(answer) for answer in answers]

    def winner(groups: list[int | None], votes: list[float] | None = None) -> str:
        place = pick(groups, votes, rewards)
        assert place is not None
        return str(answers[place])

    assert winner([None] * len(answers)) == expected["best_of_n(max mean reward)"]
    assert winner([*classes]) == expected["majority"]
    # A vote weighs at most 1 here; the winner is the same whatever all are divided by.
    votes = [exp(reward - 1) for reward in rewards]
    totals = totals_of(classes, votes)
    assert {answers[place]: exp(1) * total for place, total in totals.items()} == pytest.approx(
        expected["code_sum_exp"]
    )
    assert winner([*classes], votes) == expected["code_sum_exp_winner"]
    sharp = [exp((reward - 1) / 0.1) for reward in rewards]
    assert winner([*classes], sharp) == expected["weighted_exp_tau0.1_winner"]
    # Less the least reward, so that none is negative.
    means = [
        (reward - min(rewards)) / classes.count(place)
        for reward, place in zip(rewards, classes, strict=True)
    ]
    assert winner([*classes], means) == expected["group_mean_winner"]


def test_best_of_n_and_weighted_votes() -> None:
    inputs, expected = block("A5_best_of_n")
    candidates = inputs["candidates"]
    answers = [candidate["answer"] for candidate in candidates]
    steps = [candidate["step_rewards"] for candidate in candidates]
    running = [[sum(row[: place + 1]) for place in range(len(row))] for row in steps]
    scores = {
        "min": [AGGREGATIONS["min"](row) for row in steps],
        "sum": [AGGREGATIONS["sum"](row) for row in steps],
        "accumulative_min": [AGGREGATIONS["min"](row) for row in running],
    }
    for name, values in scores.items():
        assert values == pytest.approx(expected[f"score_{name}"])
        nobody_answers = [None] * len(values)
        assert pick(nobody_answers, ranks=values) == expected["pick_index"][name]
    classes: list[int | None] = [answers.index(answer) for answer in answers]
    first = pick(classes)
    assert first is not None
    assert answers[first] == expected["majority_vote"]
    for scale, key in ((1, "sigmoid_of_min"), (20, "sigmoid_of_20x_min")):
        votes = [sigmoid(scale * score) for score in scores["min"]]
        totals = {answers[place]: value for place, value in totals_of(classes, votes).items()}
        assert totals == pytest.approx(expected[f"weighted_vote_{key}"])
        won = pick(classes, votes)
        assert won is not None
        assert answers[won] == expected["weighted_pick"][key]
