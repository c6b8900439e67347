"""A report as a page, its picture beside it."""

from pathlib import Path

from training.experiments.base import Experiment, Report, Table


def write_page(experiment: Experiment, report: Report, folder: Path, facts: str) -> Path:
    """`NAME.md` and `NAME.svg` in `folder`; `facts` says how long it took and on how many units."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "rung"  # the same picture has the same bytes
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    report.draw(figure)
    figure.savefig(folder / f"{experiment.name}.svg", metadata={"Date": None})
    page = folder / f"{experiment.name}.md"
    page.write_text(_text(experiment, report, facts), encoding="utf-8")
    return page


def _text(experiment: Experiment, report: Report, facts: str) -> str:
    parts = [
        f"# {experiment.title}",
        f"**Claim.** {experiment.claim} ({experiment.source})",
        f"**{report.verdict.capitalize()}.** {report.sentence}",
        f"![{experiment.title}]({experiment.name}.svg)",
        *(_markdown(table) for table in report.tables),
        report.notes.strip(),
        f"## Setting\n\n{experiment.setting.strip()}",
        f"## Run\n\n    rung experiments {experiment.name}\n\n{facts}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(table: Table) -> str:
    lines = [table.head, tuple("---" for _ in table.head), *table.rows]
    for line in lines:
        assert len(line) == len(table.head), f"{table.title}: {line}"
    return f"### {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
