"""The figures as a picture, for whoever would rather look."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def draw_curves(evaluation: Mapping[str, Any], path: Path) -> None:
    """Right answers by the number of samples and by how one is chosen, with the intervals."""
    # A second of imports that nothing else here needs.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "rung"  # the same picture has the same bytes
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(
        xlabel="samples per problem", ylabel="% right", xscale="log", ylim=(0, 100)
    )
    sizes: list[int] = []
    for name, curve in evaluation["curves"].items():
        sizes = [int(size) for size in curve]
        mean, low, high = (
            [100 * point[key] for point in curve.values()] for key in ("mean", "low", "high")
        )
        axes.fill_between(sizes, low, high, alpha=0.15)
        axes.plot(sizes, mean, marker="o", label=name)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.3)
    axes.legend(title="chosen by", loc="lower right")
    figure.savefig(path, metadata={"Date": None})
