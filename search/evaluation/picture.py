"""Accuracy against generated tokens: a line for every strategy, over its widths."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from search.evaluation.figures import Point, Report

_MARKERS = "osD^vP*Xd<>ph"
# Drawn first and in grey tones: what the others are held against.
_BASELINES: Mapping[str, str] = {"majority": "0.35", "weighted": "0.55"}


def draw_accuracy(report: Report, path: Path) -> None:
    """Write the picture: points with their 95 % intervals, pass@1 as a level."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "rung"  # the same picture has the same bytes
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot(
        xlabel="generated tokens per problem, discarded ones among them",
        ylabel="% right",
        xscale="log",
        title=f"{report.problems} problems, 95 % intervals",
    )
    lines = lines_of(report)
    for number, (name, points) in enumerate(lines.items()):
        right = [100 * point.accuracy.value for point in points]
        if name == "pass@1":
            axes.axhline(right[0], color="0.5", linestyle=":", label=name)
            continue
        below = [100 * (p.accuracy.value - p.accuracy.low) for p in points]
        above = [100 * (p.accuracy.high - p.accuracy.value) for p in points]
        axes.errorbar(
            [point.mean_tokens.value for point in points],
            right,
            yerr=[below, above],
            marker=_MARKERS[number % len(_MARKERS)],
            color=_BASELINES.get(name, mpl.colormaps["tab10"](number % 10)),
            linestyle="--" if name in _BASELINES else "-",
            elinewidth=0.6,
            label=name,
        )
    axes.grid(visible=True, which="both", alpha=0.2)
    figure.legend(loc="outside right upper")
    figure.savefig(path, metadata={"Date": None} if path.suffix != ".png" else None)


def lines_of(report: Report) -> dict[str, Sequence[Point]]:
    """Points by strategy, in the order of tokens."""
    lines: dict[str, list[Point]] = {}
    for point in sorted(report.points, key=lambda point: point.mean_tokens.value):
        lines.setdefault(point.name, []).append(point)
    baselines = [name for name in ("pass@1", *_BASELINES) if name in lines]
    others = [name for name in lines if name not in baselines]
    return {name: lines[name] for name in [*others, *baselines]}
