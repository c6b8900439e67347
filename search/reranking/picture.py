"""Accuracy against candidates and against cost, a line for every selection."""

from pathlib import Path

from search.reranking.measure import Reranking

# The others are in the figures: fifteen lines would tell nothing.
SHOWN = {
    "oracle": "0.75",
    "calibrated": "tab:red",
    "weighted by product": "tab:orange",
    "weighted by last": "tab:green",
    "majority": "tab:blue",
    "best by product": "tab:purple",
    "best by last": "tab:brown",
    "pass@1": "0.4",
}


def draw_reranking(found: Reranking, path: Path) -> None:
    """Two panels with 95 % bands; sampling in waves as points beside the lines."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "rung"  # the same picture has the same bytes
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    curves = [curve for curve in found.curves if curve.label in SHOWN]
    full = found.curves[0].points[-1].mean_cost
    for number, label in enumerate(("candidates", f"{found.unit} per problem"), start=1):
        axes = figure.add_subplot(1, 2, number, xscale="log", xlabel=label, ylabel="% right")
        for curve in curves:
            places = [
                point.candidates if number == 1 else point.mean_cost for point in curve.points
            ]
            low, middle, high = (
                [100 * getattr(point.accuracy, part) for point in curve.points]
                for part in ("low", "value", "high")
            )
            color = SHOWN[curve.label]
            axes.plot(places, middle, color=color, marker=".", label=curve.label)
            axes.fill_between(places, low, high, color=color, alpha=0.05, linewidth=0)
        for waves in found.adaptive:
            if waves.order == "random" or found.orders == 0:
                at = waves.candidates if number == 1 else waves.cost.value * full
                color = SHOWN["majority" if waves.label == "by votes" else "calibrated"]
                axes.plot(
                    [at], [100 * waves.accuracy.value], color=color, marker="*", markersize=13,
                    linestyle="none", label=f"adaptive, {waves.label}",
                )  # fmt: skip
        ticks = [point.candidates if number == 1 else point.mean_cost for point in curves[0].points]
        axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(visible=True, alpha=0.2)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    figure.savefig(path, metadata={"Date": None} if path.suffix != ".png" else None)
