"""What came out of PRIME's experiment: verdict, tables, picture."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from training.experiments.base import Report, Result, Table, Verdict
from training.experiments.statistics import (
    Interval,
    area_under,
    over_seeds,
    paired_over_seeds,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASE, OFFLINE = "policy", "offline_prm"
TITLES = {
    "rloo": "RLOO, outcome rewards",
    "rloo_slow": "RLOO, a third of the rate",
    "prime": "PRIME",
    "prime_slow": "PRIME, a third of the rate",
    "prime_warm": "PRIME, PRM pre-trained",
    "prime_frozen": "PRIME, PRM pre-trained and frozen",
}
_COLOURS = {
    "rloo": "0.3", "rloo_slow": "0.7", "prime": "C0", "prime_slow": "C9",
    "prime_warm": "C2", "prime_frozen": "C3",
}  # fmt: skip
# What an arm is compared with: outcome rewards at its own learning rate.
_BESIDE = {
    "prime": "rloo", "prime_slow": "rloo_slow", "prime_warm": "rloo", "prime_frozen": "rloo"
}  # fmt: skip
_ONLINE, _FROZEN = "prime_warm", "prime_frozen"
# Steps at the beginning and at the end whose rollouts a PRM's accuracy is read on.
ENDS = 20
GOAL = 0.5
REPRODUCED = (
    "**Reproduced** means here, at 95 % over seeds: the area under PRIME's accuracy, by steps, is "
    "above RLOO's; and in the last "
    f"{ENDS} steps the PRM that goes on learning orders more pairs rightly than the same PRM "
    "frozen at its start, which has lost accuracy. Partly: one of the two. That was set down "
    "before the reported runs."
)

# The results of each arm, in the order of their seeds; of the policy and the PRM that all of them
# begin with, one.
ByArm = Mapping[str, Sequence[Result]]


def report_on(results: ByArm) -> Report:
    """See `Experiment.report`."""
    verdict, sentence = _verdict(results)
    return Report(
        verdict=verdict,
        sentence=sentence,
        tables=(_efficiency(results), _accuracy_of_prms(results)),
        draw=lambda figure: _draw(figure, results),
        notes=(
            f"The start policy is right in {results[BASE][0]['accuracy']:.3f} of its responses; it "
            "and the pre-trained PRM are one for all runs, so that intervals say nothing of others."
            " They are Student's t over seeds, and differences are paired by seed. The area is the "
            "mean height of the curve from the start policy on. By tokens, the rollouts that a PRM "
            "was pre-trained on come first, and every curve is read up to what the shortest run "
            "has sampled; a dash: by then that arm has not begun. "
            f"Steps to {GOAL:g} count as the run's length where it was not reached. Pairs are of "
            "the arm's own rollouts, which are other ones in each arm as its policy learns. The "
            f"criterion's start is the mean of {ENDS} steps: a PRM that is fooled within a few of "
            "them has lost its accuracy in that mean already, and the change to the end shows "
            'none of it; "before RL" and the picture do.'
        ),
    )


def _verdict(results: ByArm) -> tuple[Verdict, str]:
    gain = paired_over_seeds(_areas(results, "prime"), _areas(results, "rloo"))
    ahead = paired_over_seeds(_pairs(results, _ONLINE, last=True), _frozen(results, last=True))
    lost = paired_over_seeds(_frozen(results, last=False), _frozen(results, last=True))
    itself = [_pairs(results, _ONLINE, last=end) for end in (True, False)]
    passed = (gain.is_above_zero, ahead.is_above_zero and lost.is_above_zero)
    verdict: Verdict = (
        "reproduced" if all(passed) else "partly reproduced" if any(passed) else "not reproduced"
    )
    first = "PRIME is more sample-efficient than RLOO here" if passed[0] else (
        "PRIME is less sample-efficient than RLOO here" if gain.high < 0
        else "No gain of PRIME in sample efficiency over RLOO is seen here"
    )  # fmt: skip
    second = (
        "stays ahead of the frozen one, which decays"
        if passed[1]
        else "is not seen to stay ahead of a frozen one that decays"
    )
    sentence = (
        f"{first}: the area under its accuracy is {over_seeds(_areas(results, 'prime'))} against "
        f"{over_seeds(_areas(results, 'rloo'))}, a difference of {gain}. The online PRM {second}: "
        f"in the last {ENDS} steps it is ahead by {ahead} of the pairs; since the start the frozen "
        f"one has lost {lost}, and it has gained {paired_over_seeds(*itself)} itself. On the start "
        f"policy's rollouts, where its training ended, both had {_before(results):.3f}."
    )
    return verdict, sentence


def _curve_of(result: Result, base: Result) -> tuple[list[float], list[float]]:
    return [0, *result["steps"]], [base["accuracy"], *result["accuracy"]]


def _areas(results: ByArm, arm: str) -> list[float]:
    return [area_under(*_curve_of(own, results[BASE][0])) for own in results[arm]]


def _areas_by_tokens(results: ByArm, arm: str) -> list[float]:
    """Every arm up to the same number of sampled tokens; while a PRM is trained beforehand the
    policy stays as it is. Nothing where all of them go into that."""
    found = []
    start = results[BASE][0]["accuracy"]
    before = results[OFFLINE][0]["tokens"] if arm in (_ONLINE, _FROZEN) else 0.0
    for place, own in enumerate(results[arm]):
        tokens = [0.0, before, *(before + count for count in own["tokens"])]
        values = [start, start, *own["accuracy"]]
        most = min(results[name][place]["tokens"][-1] for name in TITLES)
        if before >= most:
            return []
        found.append(area_under(*_cut(tokens, values, most)))
    return found


def _cut(
    places: Sequence[float], values: Sequence[float], end: float
) -> tuple[list[float], list[float]]:
    """A curve up to `end`, with its value there by interpolation."""
    import numpy as np

    kept = [place for place in places if place < end]
    last = float(np.interp(end, places, values))
    return [*kept, end], [*values[: len(kept)], last]


def _steps_to(results: ByArm, arm: str, goal: float) -> tuple[list[float], int]:
    """When each run was first as right as `goal`, and how many runs never were."""
    found, never = [], 0
    for own in results[arm]:
        steps, values = _curve_of(own, results[BASE][0])
        place = next((i for i, value in enumerate(values) if value >= goal), None)
        if place is None:
            never += 1
            found.append(steps[-1])
        elif place == 0:
            found.append(0.0)
        else:
            share = (goal - values[place - 1]) / (values[place] - values[place - 1])
            found.append(steps[place - 1] + share * (steps[place] - steps[place - 1]))
    return found, never


def _pairs(results: ByArm, arm: str, *, last: bool) -> list[float]:
    """The PRM's pair accuracy on the policy's own rollouts, at the beginning or at the end."""
    found = []
    for result in results[arm]:
        values = [value for _, value in result["pair_accuracy"]]
        found.append(fmean(values[-ENDS:] if last else values[:ENDS]) if values else 0.5)
    return found


def _before(results: ByArm) -> float:
    """The pre-trained PRM's, on the start policy's rollouts that it had not seen."""
    return fmean(results[OFFLINE][0]["pair_accuracy"][-ENDS:])


def _frozen(results: ByArm, *, last: bool) -> list[float]:
    return _pairs(results, _FROZEN, last=last)


def _efficiency(results: ByArm) -> Table:
    rows = []
    for arm, title in TITLES.items():
        areas = _areas(results, arm)
        beside = _BESIDE.get(arm)
        by_tokens = _areas_by_tokens(results, arm)
        to_goal, never = _steps_to(results, arm, GOAL)
        rows.append(
            (
                title,
                str(over_seeds(areas)),
                "–" if beside is None else str(paired_over_seeds(areas, _areas(results, beside))),
                str(over_seeds(by_tokens)) if by_tokens else "–",
                str(over_seeds([r["accuracy"][-1] for r in results[arm]])),
                f"{_short(over_seeds(to_goal))}" + (f", {never} never" if never else ""),
            )
        )
    return Table(
        title="Accuracy on held-out problems",
        head=(
            "",
            "area by steps",
            "less RLOO's",
            "area by tokens",
            "at the end",
            f"steps to {GOAL:g}",
        ),
        rows=tuple(rows),
    )


def _accuracy_of_prms(results: ByArm) -> Table:
    rows = []
    for arm, title in TITLES.items():
        if arm not in _BESIDE:
            continue
        first, last = (_pairs(results, arm, last=end) for end in (False, True))
        rows.append(
            (
                title,
                f"{_before(results):.3f}" if arm in (_ONLINE, _FROZEN) else "–",
                str(over_seeds(first)),
                str(over_seeds(last)),
                str(paired_over_seeds(last, first)),
                str(over_seeds([r["best_of_n"][-1] for r in results[arm]])),
            )
        )
    return Table(
        title="Pairs that the PRM orders rightly, of the rollouts it has not seen yet",
        head=(
            "",
            "before RL",
            f"first {ENDS} steps",
            f"last {ENDS} steps",
            "change",
            "best-of-4 at the end",
        ),
        rows=tuple(rows),
    )


def _short(interval: Interval) -> str:
    return f"{interval.mean:.0f} ({interval.low:.0f} to {interval.high:.0f})"


def _draw(figure: "Figure", results: ByArm) -> None:
    accuracy, pairs = figure.subplots(1, 2)
    for arm, title in TITLES.items():
        rows = [_curve_of(own, results[BASE][0]) for own in results[arm]]
        _band(accuracy, arm, title, rows[0][0], [values for _, values in rows])
        if arm not in _BESIDE:
            continue
        smooth = [_in_bins(result["pair_accuracy"], ENDS // 5) for result in results[arm]]
        count = min(len(places) for places, _ in smooth)
        if count:
            values = [own[:count] for _, own in smooth]
            _band(pairs, arm, title, smooth[0][0][:count], values)
    accuracy.set(xlabel="step", ylabel="accuracy, held-out problems", title="sample efficiency")
    accuracy.legend(fontsize="small")
    pairs.axhline(0.5, color="0.4", linestyle=":")
    pairs.set(xlabel="step", ylabel="pairs in order", title="the PRM on new rollouts")
    if pairs.get_legend_handles_labels()[0]:  # a quick run may have had no pair at all
        pairs.legend(fontsize="small")


def _in_bins(points: Sequence[tuple[float, float]], width: int) -> tuple[list[float], list[float]]:
    """Means over `width` steps that have any, since a single batch has few pairs."""
    bins: dict[int, list[float]] = {}
    for step, value in points:
        bins.setdefault(int(step - 1) // width, []).append(value)
    return [(place + 0.5) * width for place in bins], [fmean(own) for own in bins.values()]


def _band(
    axes: "Axes",
    arm: str,
    title: str,
    places: Sequence[float],
    rows: Sequence[Sequence[float]],
) -> None:
    intervals = [over_seeds(values) for values in zip(*rows, strict=True)]
    axes.plot(places, [own.mean for own in intervals], label=title, color=_COLOURS[arm])
    axes.fill_between(
        places,
        [own.low for own in intervals],
        [own.high for own in intervals],
        color=_COLOURS[arm],
        alpha=0.12,
        linewidth=0,
    )
