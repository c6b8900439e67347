"""Reliability diagrams: what was predicted against what came true."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from prm.errors import InvalidInput
from prm.evaluation.reliability import Comparison

FORMATS = (".svg", ".png", ".pdf")


def check_picture(path: Path, option: str = "--plot") -> None:
    """Raises InvalidInput when no picture could be drawn there, before any work is done."""
    if path.suffix not in FORMATS:
        raise InvalidInput(f"{option} {path}: name a file that ends in {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise InvalidInput(f"{option} {path}: there is no folder {path.parent}")
    if find_spec("matplotlib") is None:
        raise InvalidInput(f"{option} needs matplotlib: pip install 'rung[train]'")


def draw_reliability(panels: Mapping[str, Comparison], path: Path) -> None:
    """One diagram per panel: bins before and after, the area of a dot being the bin's share."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "rung"  # the same picture has the same bytes
    figure = Figure(figsize=(4.2 * len(panels), 4.2), layout="constrained")
    for number, (title, panel) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(
            1, len(panels), number, title=title, xlabel="predicted", ylabel="came true",
            xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal",
        )  # fmt: skip
        axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
        for name, side in (("before", panel.before), ("after", panel.after)):
            full = [b for b in side.bins if b.count]
            total = sum(b.count for b in full)
            predicted = [b.prediction or 0.0 for b in full]
            came_true = [b.frequency or 0.0 for b in full]
            label = f"{name}: ECE {side.ece.value:.3f}"
            (line,) = axes.plot(predicted, came_true, alpha=0.5, label=label)
            sizes = [20 + 400 * b.count / total for b in full]
            axes.scatter(predicted, came_true, s=sizes, color=line.get_color(), alpha=0.5)
        axes.legend(loc="upper left")
    figure.savefig(path, metadata={"Date": None} if path.suffix != ".png" else None)
