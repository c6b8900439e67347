"""The figures as a page of the documentation has them: written by the run, so that none is copied.

The page holds two lines, `<!-- figures: begin -->` and `<!-- figures: end -->`; what stands between
them is replaced.
"""

from collections.abc import Iterable
from pathlib import Path

from prm.errors import InvalidInput
from prm.evaluation.reliability import Interval
from search.evaluation.figures import BASELINES, Report

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
HEADINGS = (
    "strategy", "% right", "95 % interval", "oracle", "right ones", "tokens", "PRM tokens", "s"
)  # fmt: skip


def check_page(path: Path) -> None:
    """Raises InvalidInput when the page is not there or has no place for figures."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--docs {path}: cannot be read as UTF-8 text: {error}") from error
    if not 0 <= text.find(BEGIN) < text.find(END):
        raise InvalidInput(f"--docs {path}: has no line {BEGIN} with a line {END} after it")


def write_figures(path: Path, report: Report, command: str) -> None:
    """Replace what stands between the page's two markers."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    text = f"{before}{BEGIN}\n{figures(report, command)}\n{END}{after}"
    path.write_text(text, encoding="utf-8")


def figures(report: Report, command: str) -> str:
    """Both tables, in Markdown."""
    found = {(d.label, d.baseline): signed(d.accuracy) for d in report.differences}
    labels = dict.fromkeys(d.label for d in report.differences)
    return "\n".join(
        [
            f"`{command}`: {report.problems} problems.",
            "",
            _row(*HEADINGS),
            "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
            *(
                _row(
                    point.label,
                    *_percents(point.accuracy),
                    f"{100 * point.oracle.value:.1f}",
                    f"{100 * point.right_share.value:.1f}",
                    f"{point.mean_tokens.value:.0f}",
                    f"{point.mean_read_tokens:.0f}",
                    f"{point.wall_s:.0f}",
                )
                for point in report.points
            ),
            "",
            _row("at equal tokens", *(f"minus {name}" for name in BASELINES)),
            "| --- | --- | --- | --- |",
            *(
                _row(label, *(found.get((label, baseline), "") for baseline in BASELINES))
                for label in labels
            ),
        ]
    )


def signed(figure: Interval) -> str:
    """A difference with its interval, in points."""
    return f"{100 * figure.value:+.1f} [{100 * figure.low:+.1f}, {100 * figure.high:+.1f}]"


def _percents(figure: Interval) -> Iterable[str]:
    yield f"{100 * figure.value:.1f}"
    yield f"{100 * figure.low:.1f} to {100 * figure.high:.1f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
