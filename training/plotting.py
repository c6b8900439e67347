"""A run's events as a picture: rewards, evaluations, losses, and where the time went."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.events import read_events

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Told = Sequence[dict[str, Any]]
Draw = Callable[["Axes", Told, Sequence[str]], None]
# Of so many steps and more, a curve is drawn as means over windows of a thirtieth of them, with
# every step's own value pale behind it.
SMOOTHED_FROM = 60
_COLUMNS = 2
# The phases of a step as they lie on top of each other, in colours of their own.
PHASES = {
    "seconds_rollouts": "C0",
    "seconds_grading": "C1",
    "seconds_old_logprobs": "C6",
    "seconds_reference": "C2",
    "seconds_credit": "C3",
    "seconds_update": "C4",
    "seconds_other": "lightgrey",
}
# A phase with less than this share of the time is not drawn, and a KL below `NO_KL` is none.
LEAST_SHARE = 0.005
NO_KL = 1e-6


def draw_run(events: Path, picture: Path) -> None:
    """Draw `events.jsonl` of a run, whole or still going on, as .svg, .png or .pdf."""
    # A second of imports that nothing else here needs.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "rung"  # the same picture has the same bytes
    told = read_events(events)
    panels = [
        (title, draw, shown)
        for title, draw, names in PANELS
        if (shown := [name for name in names if _is_drawn(told, name)])
    ]
    rows = -(-len(panels) // _COLUMNS)
    steps = [event["step"] for event in told] or [1]
    figure = Figure(figsize=(11, 2.9 * rows), layout="constrained")
    figure.suptitle(_headline(told), fontsize="medium")
    for place, (title, draw, names) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, _COLUMNS, place)
        axes.set_title(title, fontsize="medium", loc="left")
        axes.set_xlabel("step")
        axes.grid(visible=True, alpha=0.3)
        draw(axes, told, names)
        axes.set_xlim(min(steps) - 0.5, max(steps) + 0.5)
        axes.legend(fontsize="small", framealpha=0.6)
    figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)


def _curves(axes: "Axes", told: Told, names: Sequence[str]) -> None:
    """A line per number; evaluations, which are few, have dots."""
    for name in names:
        steps, values = np.array(_points(told, name)).T
        is_measured = any(name in event for event in told if event["kind"] == "evaluation")
        if is_measured:
            axes.plot(steps, values, label=f"{name}, held out", marker="o", markersize=4)
        elif len(steps) < SMOOTHED_FROM:
            axes.plot(steps, values, label=name, linewidth=1.2)
        else:
            window = len(steps) // 30
            (line,) = axes.plot(steps, _means(values, window), label=name, linewidth=1.6)
            axes.plot(steps, values, color=line.get_color(), linewidth=0.6, alpha=0.3)


def _shares(axes: "Axes", told: Told, names: Sequence[str]) -> None:
    """As `_curves`; they lie between 0 and 1."""
    _curves(axes, told, names)
    axes.set_ylim(-0.03, 1.03)


def _stack(axes: "Axes", told: Told, names: Sequence[str]) -> None:
    """What lies on top of each other adds up to a step's seconds; what is left of it is grey."""
    steps = [event for event in told if event["kind"] == "step"]
    window = max(1, len(steps) // 100)

    def column(name: str) -> NDArray[np.float64]:
        values = np.array([event.get(name) or 0.0 for event in steps], dtype=float)
        return _means(values, window)

    parts = {name: column(name) for name in names if name != "seconds"}
    total = np.sum(list(parts.values()), axis=0)
    if "seconds" in names:
        parts["seconds_other"] = np.maximum(column("seconds") - total, 0.0)
        total = total + parts["seconds_other"]
    shown = {n: part for n, part in parts.items() if part.sum() > LEAST_SHARE * total.sum()}
    axes.stackplot(
        [event["step"] for event in steps],
        *shown.values(),
        labels=[name.removeprefix("seconds_") for name in shown],
        colors=[PHASES[name] for name in shown],
        alpha=0.85,
    )
    # A step that was slow for reasons of its own must not make all others flat.
    axes.set_ylim(0, 1.4 * float(np.percentile(total, 98)))


# Title, how it is drawn, and the numbers in it, where a run has them.
PANELS: tuple[tuple[str, Draw, tuple[str, ...]], ...] = (
    ("reward and accuracy", _shares, ("reward", "accuracy", "average", "pass", "majority")),
    ("best of n by the PRM", _shares, ("best_of_n_min", "best_of_n_sum")),
    (
        "PRM: right before wrong, right or wrong, first errors",
        _shares,
        ("prm_pair_accuracy", "prm_accuracy", "prm_first_error_f1", "first_error_f1"),
    ),
    ("loss", _curves, ("loss", "policy_loss")),
    ("PRM's loss", _curves, ("prm_loss",)),
    (
        "KL to the reference, and of the step",
        _curves,
        ("reference_kl_k3", "policy_reference_kl", "policy_approx_kl_k3"),
    ),
    ("entropy, nats per token", _curves, ("entropy",)),
    (
        "seconds of a step",
        _stack,
        (*PHASES, "seconds"),
    ),
    ("response tokens trained on per second", _curves, ("tokens_per_s",)),
)


def _headline(told: Told) -> str:
    """How far it is, how long that took and what the last evaluation said."""
    steps = [event for event in told if event["kind"] == "step"]
    measured = [event for event in told if event["kind"] == "evaluation"]
    words = [f"{len(steps)} steps"]
    seconds = sum(event.get("seconds") or 0.0 for event in steps)
    if seconds:
        words.append(f"{seconds / 60:.1f} min of training")
    if measured:
        words += [
            f"{name} {value:.3g}"
            for name, value in measured[-1].items()
            if name in ("average", "best_of_n_min")
        ]
    return " · ".join(words)


def _is_drawn(told: Told, name: str) -> bool:
    """Whether there is something to see: a KL of a policy that is what wrote never leaves 0."""
    values = [abs(value) for _, value in _points(told, name)]
    return bool(values) and ("kl" not in name or max(values) > NO_KL)


def _points(told: Told, name: str) -> list[tuple[int, float]]:
    return [(event["step"], event[name]) for event in told if event.get(name) is not None]


def _means(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Each value's mean with those up to half a window away: fewer at the ends."""
    if window < 2:
        return values
    kernel = np.ones(window)
    count = np.convolve(np.ones(len(values)), kernel, "same")
    return np.asarray(np.convolve(values, kernel, "same") / count, dtype=np.float64)
