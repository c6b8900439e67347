"""A run's events as a picture: what was rewarded, what was measured, what the losses did."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.events import read_events

# Panels, and the numbers that are drawn in each where a run has them.
PANELS: dict[str, tuple[str, ...]] = {
    "rollouts": ("reward", "accuracy"),
    "held-out problems": ("average", "pass", "majority", "best_of_n_min", "first_error_f1"),
    "PRM": ("prm_pair_accuracy", "prm_accuracy"),
    "loss": ("loss", "policy_loss", "prm_loss"),
    "entropy": ("entropy",),
    "KL": ("policy_reference_kl", "policy_approx_kl_k3"),
    "seconds of a step": (
        "seconds_rollouts", "seconds_grading", "seconds_credit", "seconds_update"
    ),
}  # fmt: skip


def draw_run(events: Path, picture: Path) -> None:
    """Draw `events.jsonl` of a run, whole or still going on, as .svg, .png or .pdf."""
    # A second of imports that nothing else here needs.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "rung"  # the same picture has the same bytes
    told = read_events(events)
    panels = {
        title: curves
        for title, names in PANELS.items()
        if (curves := {n: c for n in names if len((c := _curve(told, n))[0]) > 0})
    }
    figure = Figure(figsize=(10, 2.8 * -(-len(panels) // 2)), layout="constrained")
    for place, (title, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(-(-len(panels) // 2), 2, place, title=title, xlabel="step")
        for name, (steps, values) in curves.items():
            marker = "o" if len(steps) < 50 else None
            axes.plot(steps, values, label=name, marker=marker, markersize=3, linewidth=1)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)


def _curve(told: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [(event["step"], event[name]) for event in told if event.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]
