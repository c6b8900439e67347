"""What became of PRL's claim: tables, pictures and verdict."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from training.experiments.base import Report, Result, Table, Verdict
from training.experiments.statistics import Interval, over_seeds, paired_crossed
from training.metrics import pass_at_k

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Responses to each test problem.
SAMPLES = 64
PRIMARY, BASELINE = "prl_0.1", "grpo"
_COUNTS = (1, 2, 4, 8, 16, 32, 64)
_SHOWN = (4, 16, 64)
_TITLES = {
    "grpo": "GRPO",
    "k3": "GRPO, k3 loss",
    "kl_in_reward": "GRPO, KL in the reward",
    "prl": "PRL 1/η",
    "prl_start": "PRL step_start 1/η",
    "prl_end": "PRL step_end 1/η",
}

Arms = Mapping[str, Sequence[Result]]
Floats = NDArray[np.float64]


def report_on(base: Result, arms: Arms) -> Report:
    """See `Experiment.report`."""
    verdict, sentence = _verdict(arms)
    return Report(
        verdict=verdict,
        sentence=sentence,
        tables=(_figures(base, arms), _differences(arms), _drift(base, arms)),
        draw=lambda figure: _draw(figure, base, arms),
    )


def passes(results: Sequence[Result], count: int) -> Floats:
    """The unbiased pass@count of each seed (row) and problem (column)."""
    chances = np.array([pass_at_k(SAMPLES, right, count) for right in range(SAMPLES + 1)])
    found: Floats = chances[np.array([result["right"] for result in results])]
    return found


def title(arm: str) -> str:
    """What the page calls an arm.

    >>> title("prl_start_0.3")
    'PRL step_start 1/η 0.3'
    """
    kind, _, strength = arm.rpartition("_")
    return f"{_TITLES[kind]} {strength}" if kind else _TITLES[arm]


def _against(arms: Arms, arm: str, count: int, other: str = BASELINE) -> Interval:
    ours, theirs = (passes(arms[name], count).tolist() for name in (arm, other))
    return paired_crossed(ours, theirs)


def _verdict(arms: Arms) -> tuple[Verdict, str]:
    average, at_16 = (_against(arms, PRIMARY, count) for count in (1, 16))
    better = [
        arm for arm in arms
        if arm.startswith("prl") and all(_against(arms, arm, n).is_above_zero for n in (1, 16))
    ]  # fmt: skip
    verdict: Verdict = (
        "reproduced" if PRIMARY in better
        else "partly reproduced" if better or average.is_above_zero or at_16.is_above_zero
        else "not reproduced"
    )  # fmt: skip
    plain = max((arm for arm in arms if arm.startswith("k3")), key=lambda arm: _mean(arms[arm], 1))
    with_both = ", ".join(title(arm) for arm in better) or "none"
    return verdict, (
        f"With 1/η {PRIMARY.removeprefix('prl_')} PRL's average is {_signed(average)} beside "
        f"GRPO's and its pass@16 {_signed(at_16)}; above GRPO in both, with intervals above 0: "
        f"{with_both}. Beside {title(plain)}, a KL in the loss, its average is "
        f"{_signed(_against(arms, PRIMARY, 1, plain))} and its pass@16 "
        f"{_signed(_against(arms, PRIMARY, 16, plain))}."
    )


def _signed(interval: Interval) -> str:
    return f"{interval.mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def _mean(results: Sequence[Result], count: int) -> float:
    return float(passes(results, count).mean())


def _figures(base: Result, arms: Arms) -> Table:
    rows: list[tuple[str, ...]] = [
        ("base model", *(f"{_mean([base], count):.3f}" for count in (1, *_SHOWN)))
    ]
    for arm, results in arms.items():
        by_seed = [over_seeds(list(passes(results, count).mean(1))) for count in (1, *_SHOWN)]
        rows.append((title(arm), *map(str, by_seed)))
    return Table(
        title=f"On new problems: means and 95 % intervals over {len(arms[BASELINE])} seeds",
        head=("arm", "average", *(f"pass@{count}" for count in _SHOWN)),
        rows=tuple(rows),
    )


def _differences(arms: Arms) -> Table:
    rows = [
        (title(arm), *(_signed(_against(arms, arm, count)) for count in (1, *_SHOWN)))
        for arm in arms
        if arm != BASELINE
    ]
    return Table(
        title="Minus GRPO: 95 % intervals over seeds and problems, paired",
        head=("arm", "average", *(f"pass@{count}" for count in _SHOWN)),
        rows=tuple(rows),
    )


def _drift(base: Result, arms: Arms) -> Table:
    rows: list[tuple[str, ...]] = [("base model", "", f"{base['entropy']:.3f}", "0")]
    for arm, results in arms.items():
        numbers = [
            over_seeds([result[name] for result in results]).mean
            for name in ("train_accuracy", "entropy", "kl")
        ]
        rows.append((title(arm), *(f"{number:.3f}" for number in numbers)))
    head = ("accuracy in training", "entropy per token", "KL to the base, nats")
    return Table(
        title="Where they end: the last 20 steps, and what is written of the test problems",
        head=("arm", *head),
        rows=tuple(rows),
    )


def _draw(figure: "Figure", base: Result, arms: Arms) -> None:
    left, right = figure.subplots(1, 2)
    for arm, colour in (("base", "black"), *_coloured(arms)):
        results = [base] if arm == "base" else arms[arm]
        heights = [_mean(results, count) for count in _COUNTS]
        label = "base model" if arm == "base" else title(arm)
        left.plot(_COUNTS, heights, marker="o", markersize=3, label=label, color=colour)
    left.set_xscale("log", base=2)
    left.set_xticks(_COUNTS, list(map(str, _COUNTS)))
    left.set(title="new problems: pass@n", xlabel="n", ylim=(0, 1))
    left.grid(visible=True, alpha=0.3)
    left.legend(fontsize="x-small")
    families: dict[str, list[str]] = {}
    for arm in arms:
        families.setdefault(arm.rpartition("_")[0] or arm, []).append(arm)
    for (kind, members), colour in zip(families.items(), _PALETTE, strict=False):
        places = [(_mean(arms[arm], 16), _mean(arms[arm], 1)) for arm in members]
        right.plot(*zip(*places, strict=True), "o-", label=_TITLES[kind], color=colour)
        for arm, place in zip(members, places, strict=True):
            if arm != kind:
                right.annotate(arm.rpartition("_")[2], place, fontsize=7)
    right.plot(_mean([base], 16), _mean([base], 1), "k*", label="base model")
    right.set(title="average against pass@16", xlabel="pass@16", ylabel="average")
    right.grid(visible=True, alpha=0.3)
    right.legend(fontsize="x-small")


_PALETTE = ("tab:orange", "tab:green", "tab:blue", "tab:purple", "tab:red", "tab:brown")


def _coloured(arms: Arms) -> list[tuple[str, str]]:
    """The arms that the left panel shows."""
    shown = (BASELINE, "k3_0.1", "k3_0.3", "prl_0.03", PRIMARY, "prl_0.3", "prl_1.0")
    colours = ("tab:orange", "lightgreen", "tab:green", "lightblue", "tab:blue", "navy", "tab:cyan")
    return [pair for pair in zip(shown, colours, strict=True) if pair[0] in arms]
