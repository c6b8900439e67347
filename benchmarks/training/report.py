"""What the answers say: tokens per second, memory, shares of a step, and the targets."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.contestant import ratios, summary
from benchmarks.scoring.report import Check, number
from benchmarks.training.play import Answers

FIGURES = (
    "row",
    "model",
    "",
    "tokens/s",
    "min to max",
    "s a step",
    "of it rollouts",
    "tokens a response",
    "MB at the peak",
)
CHECKS = ("row", "model", "", "found", "min to max", "target", "")

Turns = Sequence[dict[str, Any]]


def figure_lines(answers: Answers) -> list[tuple[str, ...]]:
    """A line for every contestant of every row: medians over the rounds."""
    return [
        (
            row,
            model,
            name,
            number(statistics.median(rates := rate(turns))),
            f"{number(min(rates))} to {number(max(rates))}",
            number(statistics.median(per(turns, "seconds", "steps"))),
            number(statistics.median(per(turns, "seconds_rollouts", "steps"))),
            number(statistics.median(per(turns, "tokens", "rollouts"))),
            number(1e-6 * max(turn["peak_bytes"] for turn in turns)),
        )
        for (row, model), entrants in answers.items()
        for name, turns in entrants.items()
    ]


def checks(answers: Answers) -> list[tuple[str, str, Check]]:
    """Every check of every row that was played."""
    made = {"grpo": _beside, "lambda_grpo": _weights, "prime": _prm}
    return [
        (row, model, check)
        for (row, model), entrants in answers.items()
        for check in made[row](entrants)
    ]


def check_lines(answers: Answers) -> list[tuple[str, ...]]:
    """A line for every check."""
    words = {True: "met", False: "NOT MET", None: ""}
    return [
        (
            row,
            model,
            check.what,
            number(check.median),
            f"{number(min(check.values))} to {number(max(check.values))}",
            check.target,
            words[check.is_met],
        )
        for row, model, check in checks(answers)
    ]


def to_json(answers: Answers) -> list[dict[str, Any]]:
    """Everything, with what follows from it."""
    return [
        {
            "row": row,
            "model": model,
            "tokens_per_s": {name: summary(rate(turns)) for name, turns in entrants.items()},
            "checks": [check.to_json() for *of, check in checks(answers) if of == [row, model]],
            "turns": entrants,
        }
        for (row, model), entrants in answers.items()
    ]


def rate(turns: Turns) -> list[float]:
    """Tokens written and trained on, per second of whole steps, of every round."""
    return per(turns, "tokens", "seconds")


def per(turns: Turns, above: str, below: str) -> list[float]:
    """One figure over another, of every round."""
    return [turn[above] / turn[below] for turn in turns]


def _beside(entrants: dict[str, list[dict[str, Any]]]) -> Iterable[Check]:
    if "trl" not in entrants:
        return
    ours, theirs = entrants["rung"], entrants["trl"]
    yield Check(what="tokens/s over trl's", values=ratios(rate(ours), rate(theirs)), at_least=3.0)
    peaks = [[float(turn["peak_bytes"]) for turn in turns] for turns in (ours, theirs)]
    yield Check(what="peak memory over trl's", values=ratios(*peaks), at_most=1.0)
    written, rest = ([_rollouts(turn) for turn in turns] for turns in (ours, theirs))
    yield Check(what="seconds of rollouts per token over trl's", values=ratios(written, rest))
    updated, others = ([_rest(turn) for turn in turns] for turns in (ours, theirs))
    yield Check(what="all other seconds per token over trl's", values=ratios(updated, others))
    # Who wrote less, or other things, did not do the same work.
    for what, key, below in (
        ("tokens a response over trl's", "tokens", "rollouts"),
        ("entropy over trl's", "entropy", "steps"),
    ):
        alike = ratios(*(per(turns, key, below) for turns in (ours, theirs)))
        yield Check(what=what, values=alike, at_least=0.95)
        yield Check(what=what, values=alike, at_most=1.05)
    norms = ratios(*(per(turns, "grad_norm", "steps") for turns in (ours, theirs)))
    yield Check(what="gradient's norm over trl's", values=norms)


def _rollouts(turn: dict[str, Any]) -> float:
    return float(turn["seconds_rollouts"] / turn["tokens"])


def _rest(turn: dict[str, Any]) -> float:
    return float((turn["seconds"] - turn["seconds_rollouts"]) / turn["tokens"])


def _weights(entrants: dict[str, list[dict[str, Any]]]) -> Iterable[Check]:
    share = per(entrants["rung"], "seconds_credit", "seconds")
    yield Check(what="share of weights and advantages in a step", values=share, at_most=0.01)


def _prm(entrants: dict[str, list[dict[str, Any]]]) -> Iterable[Check]:
    share = per(entrants["rung"], "seconds_credit", "seconds")
    yield Check(what="share of the PRM in a step", values=share, at_most=0.4)
