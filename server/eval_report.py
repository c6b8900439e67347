"""How `rung eval` shows what it found: tables for people, JSON for machines."""

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from prm.calibration import FittedAggregation, HeldOut, SampleCounts
from prm.evaluation.calibrate import Fit
from prm.evaluation.fits import Graded
from prm.evaluation.ranking import Ranking
from prm.evaluation.reliability import Comparison, Interval


def print_json(**parts: Any) -> None:
    """One JSON object."""
    print(json.dumps(parts, default=_plain))


def print_fit(console: Console, fit: Fit, path: Path | None) -> None:
    """What was fitted, how it did on the problems held out, and where it went."""
    console.print(f"fitted on {_counted(fit.fitted)}")
    if fit.response is not None:
        console.print(_terms(fit.response))
    print_held_out(console, fit.held_out, title="held out")
    console.print(f"written: {path}" if path else "nothing written", soft_wrap=True)


def print_held_out(console: Console, found: HeldOut, *, title: str) -> None:
    """Figures before and after, and the bins."""
    console.print(f"{title}: {_counted(found.counts)}")
    for name, panel in panels_of(found).items():
        console.print(_figures(name, panel))
        console.print(_bins(panel))


def panels_of(found: HeldOut) -> dict[str, Comparison]:
    """The comparisons that there are, by title."""
    panels = {"steps": found.steps, f"responses, by {found.aggregation}": found.responses}
    return {title: panel for title, panel in panels.items() if panel is not None}


def print_rankings(
    console: Console, rankings: Sequence[Ranking], responses: Sequence[Graded]
) -> None:
    """A line per aggregation."""
    problems = len({response.problem for response in responses})
    right = sum(response.is_correct for response in responses) / len(responses)
    console.print(f"{len(responses)} responses to {problems} problems, {right:.1%} right")
    table = Table("aggregation", "AUROC", "best of n")
    gains = Table("fitted minus", "AUROC", "best of n")
    for ranking in rankings:
        name = ranking.aggregation
        table.add_row(name, _interval(ranking.auroc), _interval(ranking.best_of_n))
        if name != "fitted":
            gained = ranking.fitted_gains_auroc, ranking.fitted_gains_best_of_n
            gains.add_row(name, *map(_signed, gained))
    console.print(table)
    console.print(gains)
    console.print("95 % intervals by a bootstrap over problems; fitted: cross-validated")


def _figures(name: str, panel: Comparison) -> Table:
    table = Table(name, "before", "after", "after − before")
    for label, field in (("ECE", "ece"), ("Brier score", "brier"), ("log loss", "log_loss")):
        before, after, change = (
            getattr(part, field) for part in (panel.before, panel.after, panel.change)
        )
        table.add_row(label, _interval(before), _interval(after), _signed(change))
    return table


def _bins(panel: Comparison) -> Table:
    """Of each tenth: how many were predicted there, their mean, and the share that came true."""
    columns = [f"{when}: {what}" for when in ("before", "after") for what in ("n", "mean", "true")]
    table = Table("predicted", *columns)
    for before, after in zip(panel.before.bins, panel.after.bins, strict=True):
        cells = [f"{before.low:.1f}-{before.high:.1f}"]
        for side in (before, after):
            cells += [str(side.count), _share(side.prediction), _share(side.frequency)]
        table.add_row(*cells)
    return table


def _terms(response: FittedAggregation) -> Table:
    table = Table("fitted aggregation", "weight per standard deviation")
    for term in response.terms:
        table.add_row(term.feature, f"{term.weight:+.3f}")
    table.add_row("(penalty l2)", f"{response.l2:g}")
    return table


def _counted(counts: SampleCounts) -> str:
    return (
        f"{counts.problems} problems, {counts.steps} labelled steps, "
        f"{counts.responses} labelled responses"
    )


def _interval(figure: Interval) -> str:
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _signed(figure: Interval) -> str:
    return f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    raise TypeError(f"not JSON: {type(value)}")
