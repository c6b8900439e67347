"""What the answers say: seconds, what was done in them, and the targets."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.contestant import ratios, summary
from benchmarks.scoring.report import Check, number
from benchmarks.search.play import CONCURRENCY, Answers

FIGURES = (
    "row",
    "",
    "seconds per search",
    "min to max",
    "continuations",
    "tokens written",
    "tokens scored",
    "CPU s of vLLM",
    "CPU s of Rung",
)
CHECKS = ("row", "", "found", "min to max", "target", "")
_COUNTS = ("continuations", "tokens", "scored_tokens")
_CPU = ("vllm_cpu_s", "rung_cpu_s")


def checks(answers: Answers) -> list[tuple[str, Check]]:
    """Every check of every row that was played."""
    found = []
    for row, entrants in answers.items():
        made = _concurrent(entrants) if row == "concurrent" else _beside(entrants, row)
        found += [(row, check) for check in made]
    return found


def figure_lines(answers: Answers) -> list[tuple[str, ...]]:
    """A line for every entrant: medians over the rounds, all for one search."""
    return [
        (
            row,
            name,
            number(statistics.median(seconds := per_search(turns, "seconds"))),
            f"{number(min(seconds))} to {number(max(seconds))}",
            *(f"{statistics.median(per_search(turns, key)):,.0f}" for key in _COUNTS),
            *(number(statistics.median(per_search(turns, key))) for key in _CPU),
        )
        for row, entrants in answers.items()
        for name, turns in entrants.items()
    ]


def check_lines(answers: Answers) -> list[tuple[str, ...]]:
    """A line for every check."""
    words = {True: "met", False: "NOT MET", None: ""}
    return [
        (
            row,
            check.what,
            number(check.median),
            f"{number(min(check.values))} to {number(max(check.values))}",
            check.target,
            words[check.is_met],
        )
        for row, check in checks(answers)
    ]


def to_json(answers: Answers) -> list[dict[str, Any]]:
    """Everything, with what follows from it."""
    keys = ("seconds", *_COUNTS, *_CPU)
    return [
        {
            "row": row,
            "per_search": {
                name: {key: summary(per_search(turns, key)) for key in keys}
                for name, turns in entrants.items()
            },
            "checks": [check.to_json() for of, check in checks(answers) if of == row],
            "turns": entrants,
        }
        for row, entrants in answers.items()
    ]


def per_search(turns: Sequence[dict[str, Any]], key: str) -> list[float]:
    """One figure of every round, divided by the searches of a turn."""
    return [turn[key] / turn["searches"] for turn in turns]


def _concurrent(entrants: dict[str, list[dict[str, Any]]]) -> Iterable[Check]:
    at_once, in_turn = entrants["at once"], entrants["one by one"]
    times = ratios(per_search(at_once, "seconds"), per_search(in_turn, "seconds"))
    yield Check(what="wall time of one by one", values=times, at_most=1 / 3)
    same = [
        statistics.mean(map(str.__eq__, one["texts"], other["texts"]))
        for one, other in zip(at_once, in_turn, strict=True)
    ]
    yield Check(what="searches that end in the same text", values=same, at_least=1.0)


def _beside(entrants: dict[str, list[dict[str, Any]]], row: str) -> Iterable[Check]:
    ours = entrants["rung"]
    for name in entrants:
        if name in CONCURRENCY:
            theirs = entrants[name]
            times = ratios(per_search(ours, "seconds"), per_search(theirs, "seconds"))
            yield Check(what=f"time of {name}", values=times, at_most=0.5)
            for key, words in (("continuations", "continuations"), ("tokens", "tokens written")):
                counts = ratios(per_search(ours, key), per_search(theirs, key))
                # Beam searches differ in how they begin and end: told, not held to a bound.
                yield from _agreement(f"{words} over those of {name}", counts, row)


def _agreement(what: str, values: list[float], row: str) -> Iterable[Check]:
    if row == "beam-64":
        yield Check(what=what, values=values)
    else:
        yield Check(what=what, values=values, at_least=0.9)
        yield Check(what=what, values=values, at_most=1.1)
