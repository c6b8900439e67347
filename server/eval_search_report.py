"""How `rung eval search` shows what it found."""

from rich.console import Console
from rich.table import Table

from prm.evaluation.reliability import Interval
from search.evaluation.figures import BASELINES, Difference, Point, Report
from search.evaluation.page import signed


def print_report(console: Console, report: Report) -> None:
    """A line per strategy and width, and what each gains at equal tokens."""
    headings = (
        "strategy",
        "% right",
        "oracle",
        "right ones",
        "tokens",
        "PRM tokens",
        "seconds",
        "over majority",
    )
    table = Table(*headings, title=f"{report.problems} problems", title_justify="left")
    for point in report.points:
        table.add_row(*row_of(point))
    console.print(table)
    gains = Table("at equal tokens", *(f"over {name}" for name in BASELINES))
    found = {(d.label, d.baseline): d for d in report.differences}
    for label in dict.fromkeys(d.label for d in report.differences):
        gains.add_row(label, *(_cell(found.get((label, name))) for name in BASELINES))
    if report.differences:
        console.print(gains)
    console.print(
        "oracle: one of the candidates is right; right ones: of all answers, in percent; "
        "tokens: generated, per problem; PRM tokens: read by it, cached or not. 95 % intervals by "
        "a bootstrap over problems. Votes and best of n of one width share their candidates, and "
        "with them the seconds."
    )
    if undecided := sum(point.undecided for point in report.points):
        console.print(f"answers that could not be compared, counted as wrong: {undecided}")


def row_of(point: Point) -> tuple[str, ...]:
    """A cell for each heading of the table."""
    return (
        point.label,
        percent(point.accuracy),
        f"{100 * point.oracle.value:.1f}",
        f"{100 * point.right_share.value:.1f}",
        f"{point.mean_tokens.value:.0f}",
        f"{point.mean_read_tokens:.0f}",
        f"{point.wall_s:.0f}",
        "" if point.gain is None else signed(point.gain),
    )


def percent(figure: Interval) -> str:
    """A share with its interval, in percent."""
    return f"{100 * figure.value:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def _cell(difference: Difference | None) -> str:
    return "" if difference is None else signed(difference.accuracy)
