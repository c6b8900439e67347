"""What the answers say: rates, targets met or not, as tables and as JSON."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from benchmarks.contestant import ratios, summary
from benchmarks.scoring.matches import Answers, Match

# How far two contestants' mean log-probs may lie apart.
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}


@dataclass(frozen=True, kw_only=True)
class Check:
    """A figure of every round, and the bound that its median has to keep; None is only told."""

    what: str
    values: Sequence[float]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        """Over the rounds."""
        return statistics.median(self.values)

    @property
    def target(self) -> str:
        """In words, or empty."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    @property
    def is_met(self) -> bool | None:
        """None without a target."""
        if self.at_least is not None:
            return self.median >= self.at_least
        return None if self.at_most is None else self.median <= self.at_most

    def to_json(self) -> dict[str, Any]:
        """With what follows from it."""
        return {
            "what": self.what,
            "target": self.target,
            "is_met": self.is_met,
            **summary(self.values),
        }


@dataclass(frozen=True, kw_only=True)
class Row:
    """A workload on a model: what everyone said of every round."""

    workload: str
    match: Match
    answers: Answers

    def checks(self) -> list[Check]:
        """The targets of this workload, and what else is worth telling."""
        return [*_CHECKS[self.workload](self), *self._agreement()]

    def figures(self, name: str) -> list[tuple[str, list[float]]]:
        """A contestant's figures with their units, a value per round."""
        if "tokens" in self.answers[name][0]:
            found = [("tokens/s", self.rate(name))]
        elif "median_ms" in self.answers[name][0]:
            found = [("ms", self.column(name, "median_ms"))]
        else:
            found = [("GFLOP/s", [1e-9 * flops for flops in self.column(name, "flops_per_s")])]
        if self.workload == "flat" and name != "matmul":
            found.append(("MB at the peak", [1e-6 * n for n in self.column(name, "peak_bytes")]))
        return found

    def rate(self, name: str) -> list[float]:
        """Tokens per second of every round."""
        return [answer["tokens"] / answer["seconds"] for answer in self.answers[name]]

    def column(self, name: str, key: str) -> list[float]:
        """One figure of every round."""
        return [float(answer[key]) for answer in self.answers[name]]

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "workload": self.workload,
            **asdict(self.match.only([self.workload])),
            "figures": {
                name: {unit: summary(values) for unit, values in self.figures(name)}
                for name in self.answers
            },
            "checks": [check.to_json() for check in self.checks()],
            "answers": self.answers,
        }

    def _agreement(self) -> Iterable[Check]:
        """That everyone computed the same, or the rest says nothing."""
        for name, answers in self.answers.items():
            if name != "rung" and "mean_logprob" in answers[0]:
                pairs = zip(
                    self.column("rung", "mean_logprob"),
                    self.column(name, "mean_logprob"),
                    strict=True,
                )
                yield Check(
                    what=f"mean log-prob, distance to {name}'s",
                    values=[abs(ours - theirs) for ours, theirs in pairs],
                    at_most=TOLERANCE[self.match.dtype],
                )


def _flat_checks(row: Row) -> Iterable[Check]:
    for name, least, most in (("transformers", 1.5, 0.5), ("transformers-sorted", None, None)):
        rates = ratios(row.rate("rung"), row.rate(name))
        yield Check(what=f"tokens/s over {name}", values=rates, at_least=least)
        peaks = ratios(row.column("rung", "peak_bytes"), row.column(name, "peak_bytes"))
        yield Check(what=f"peak memory over {name}", values=peaks, at_most=most)
    achieved = row.column("rung", "flops_per_s")
    shares = ratios(achieved, row.column("matmul", "flops_per_s"))
    yield Check(what="FLOP/s over its matrix products'", values=shares, at_least=0.6)
    shares = ratios(achieved, row.column("matmul", "square_flops_per_s"))
    yield Check(what="FLOP/s over a 4096³ product's", values=shares)


def _over_vllm(least: float) -> Callable[[Row], Iterable[Check]]:
    def checks(row: Row) -> Iterable[Check]:
        rates = ratios(row.rate("rung"), row.rate("vllm"))
        yield Check(what="tokens/s over vllm", values=rates, at_least=least)

    return checks


def _beam_checks(row: Row) -> Iterable[Check]:
    yield from _over_vllm(5.0)(row)
    for name, most in (("rung", 1.25), ("vllm", None)):
        growth = [_growth(answer["batch_seconds"]) for answer in row.answers[name]]
        yield Check(what=f"{name}: last over early rounds' seconds", values=growth, at_most=most)


def _growth(seconds: Sequence[float]) -> float:
    """Median of the last quarter of a search's rounds over that of the quarter after the first.

    The first round reads the problem as well.
    """
    quarter = max(1, len(seconds) // 4)
    return statistics.median(seconds[-quarter:]) / statistics.median(seconds[1 : 1 + quarter])


def _single_checks(row: Row) -> Iterable[Check]:
    calls = row.column("engine-call", "median_ms")
    served = zip(row.column("server", "median_ms"), calls, strict=True)
    added = [ours - engine for ours, engine in served]
    yield Check(what="ms at the median over the engine's call", values=added, at_most=3.0)
    known = row.column("server", "known_median_ms")
    yield Check(what="ms at the median, scores known", values=known)


def _clients_checks(row: Row) -> Iterable[Check]:
    share = ratios(row.rate("server"), row.rate("engine-flat"))
    yield Check(what="tokens/s over the engine's own", values=share, at_least=0.85)
    tail = ratios(row.column("server", "p99_ms"), row.column("server", "median_ms"))
    yield Check(what="99th percentile over median", values=tail, at_most=4.0)


_CHECKS: Mapping[str, Callable[[Row], Iterable[Check]]] = {
    "flat": _flat_checks,
    "flat-implicit": _over_vllm(1.5),
    "best-of-64": _over_vllm(2.0),
    "beam": _beam_checks,
    "single": _single_checks,
    "clients": _clients_checks,
}

FIGURES = ("workload", "model", "threads", "contestant", "", "median", "min to max")
CHECKS = ("workload", "model", "", "found", "min to max", "target", "")


def figure_lines(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """A line for every figure of every contestant."""
    return [
        (
            row.workload,
            str(row.match),
            str(row.match.threads),
            name,
            unit,
            number(statistics.median(values)),
            f"{number(min(values))} to {number(max(values))}",
        )
        for row in rows
        for name in row.answers
        for unit, values in row.figures(name)
    ]


def check_lines(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """A line for every check."""
    words = {True: "met", False: "NOT MET", None: ""}
    return [
        (
            row.workload,
            str(row.match),
            check.what,
            number(check.median),
            f"{number(min(check.values))} to {number(max(check.values))}",
            check.target,
            words[check.is_met],
        )
        for row in rows
        for check in row.checks()
    ]


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    """For a terminal."""
    made = Table(*header)
    for line in lines:
        made.add_row(*line)
    return made


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """For docs/performance.md."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def number(value: float) -> str:
    """Three digits or so."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"
