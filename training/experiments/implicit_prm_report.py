"""What came out of the implicit PRM's experiment: verdict, tables, picture."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from training.experiments.base import Report, Result, Table, Verdict
from training.experiments.statistics import (
    Interval,
    over_seeds,
    paired_over_seeds,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASE = "policy"
TITLES = {
    "ce": "CE, β 0.5",
    "dpo": "DPO, β 0.5",
    "kto": "KTO, β 0.5",
    "nca": "NCA, β 0.5",
    "ce_paper_beta": "CE, β 0.05",
    "ce_one": "CE, β 0.5, one response a problem",
}
HEADLINE = "ce"
COUNTS = (1, 2, 4, 8, 16)
WITH, WITHOUT = "with_reference", "without_reference"
_LEAST_LOCATED, _LEAST_GAP_CLOSED, _MOST_LOST = 0.9, 0.5, 0.02
REPRODUCED = (
    "**Reproduced** means here, of CE at β 0.5 and at 95 %: more than "
    f"{_LEAST_LOCATED:.0%} of the wrong steps are located, and more than by the policy's own "
    f"likelihood; best-of-{COUNTS[-1]} closes more than half of the gap between majority and "
    f"oracle; and without the reference it loses less than {_MOST_LOST:g}. That was set down "
    "before the reported runs."
)

# The results of each arm, in the order of their seeds.
ByArm = Mapping[str, Sequence[Result]]


def report_on(results: ByArm) -> Report:
    """See `Experiment.report`."""
    verdict, sentence = _verdict(results)
    return Report(
        verdict=verdict,
        sentence=sentence,
        tables=(_picking(results), _blaming(results)),
        draw=lambda figure: _draw(figure, results),
        notes=(
            "Intervals are Student's t over seeds, which differ in policy, rollouts and test "
            "problems; differences are paired by seed. The policy's own likelihood is the "
            "untrained reference by itself, which Table 5 of the paper shows to be a scorer of its "
            "own. A PRM as a policy: the share of its own samples that is right (Table 3). Chance "
            "is any of six steps; slips can only be at digits from 5 on, three of six on average."
        ),
    )


def _verdict(results: ByArm) -> tuple[Verdict, str]:
    prm, base = results[HEADLINE], results[BASE]
    found = _over(prm, lambda r: r[WITH]["located"])
    more = paired_over_seeds(
        [r[WITH]["located"] for r in prm], [r["likelihood"]["located"] for r in base]
    )
    closed = over_seeds([_gap_closed(p, b) for p, b in zip(prm, base, strict=True)])
    kept = paired_over_seeds(_picked(prm, WITHOUT), _picked(prm, WITH))
    passed = (
        found.low > _LEAST_LOCATED and more.is_above_zero,
        closed.low > _LEAST_GAP_CLOSED,
        kept.low > -_MOST_LOST,
    )
    verdict: Verdict = (
        "reproduced" if all(passed) else "partly reproduced" if any(passed) else "not reproduced"
    )
    ahead = paired_over_seeds(_picked(prm, WITH), [r["majority"][-1] for r in base])
    sentence = (
        f"From outcome labels alone the PRM locates {found} of the wrong steps (the policy's own "
        f"likelihood {_over(base, lambda r: r['likelihood']['located'])}, chance 1/6); "
        f"best-of-{COUNTS[-1]} by its least step reward is "
        f"{_over(prm, lambda r: r[WITH]['best_of'][-1])}, which is {ahead} above the majority "
        f"vote and closes {closed} of its gap to the oracle; dropping the reference changes it by "
        f"{kept}."
    )
    return verdict, sentence


def _gap_closed(prm: Result, base: Result) -> float:
    vote, ceiling = base["majority"][-1], base["oracle"][-1]
    if ceiling <= vote:
        return 0.0
    return float((prm[WITH]["best_of"][-1] - vote) / (ceiling - vote))


def _picked(results: Sequence[Result], how: str) -> list[float]:
    return [result[how]["best_of"][-1] for result in results]


def _over(results: Sequence[Result], value: Callable[[Result], float]) -> Interval:
    return over_seeds([value(result) for result in results])


def _picking(results: ByArm) -> Table:
    base = results[BASE]
    none = "–"
    rows = [
        (name, str(_over(base, value)), none, none, none)
        for name, value in (
            ("one sample", lambda r: r["average"]),
            ("majority", lambda r: r["majority"][-1]),
            ("oracle", lambda r: r["oracle"][-1]),
        )
    ]
    rows.append(
        (
            "the policy's own likelihood",
            none,
            str(_over(base, lambda r: r["likelihood"]["best_of"][-1])),
            str(_over(base, lambda r: r["likelihood"]["best_of_sum"])),
            none,
        )
    )
    for arm, title in TITLES.items():
        own = results[arm]
        rows.append(
            (
                f"PRM: {title}",
                str(_over(own, lambda r: r[WITH]["best_of"][-1])),
                str(_over(own, lambda r: r[WITHOUT]["best_of"][-1])),
                str(_over(own, lambda r: r[WITH]["best_of_sum"])),
                str(_over(own, lambda r: r["as_policy"])),
            )
        )
    return Table(
        title=f"Right answers, {COUNTS[-1]} candidates",
        head=("", "least step", "least step, no reference", "sum of steps", "as a policy"),
        rows=tuple(rows),
    )


def _blaming(results: ByArm) -> Table:
    base = results[BASE]
    rows = [
        (
            "the policy's own likelihood",
            "–",
            str(_over(base, lambda r: r["likelihood"]["located"])),
            "–",
            str(_over(base, lambda r: r["likelihood"]["first_error_f1"])),
            "–",
        )
    ]
    for arm, title in TITLES.items():
        own = results[arm]
        rows.append(
            (
                f"PRM: {title}",
                str(_over(own, lambda r: r[WITH]["located"])),
                str(_over(own, lambda r: r[WITHOUT]["located"])),
                str(_over(own, lambda r: r[WITH]["first_error_f1"])),
                str(_over(own, lambda r: r[WITHOUT]["first_error_f1"])),
                # Pairs are of one problem, and that arm has one response to each.
                "–" if arm == "ce_one" else str(_over(own, lambda r: r["pair_accuracy"])),
            )
        )
    return Table(
        title="Wrong steps",
        head=(
            "",
            "located",
            "located, no reference",
            "first-error F1",
            "F1, no reference",
            "pairs in order, last 20 steps",
        ),
        rows=tuple(rows),
    )


def _draw(figure: "Figure", results: ByArm) -> None:
    picking, blaming = figure.subplots(1, 2)
    prm, base = results[HEADLINE], results[BASE]
    title = TITLES[HEADLINE]
    _curve(picking, "oracle", "0.4", [r["oracle"] for r in base])
    _curve(picking, title, "C0", [r[WITH]["best_of"] for r in prm])
    _curve(picking, f"{title}, no reference", "C1", [r[WITHOUT]["best_of"] for r in prm])
    _curve(picking, "policy's likelihood", "C2", [r["likelihood"]["best_of"] for r in base])
    _curve(picking, "majority", "C3", [r["majority"] for r in base])
    picking.set_xscale("log", base=2)
    picking.set_xticks(COUNTS, [str(count) for count in COUNTS])
    picking.set(xlabel="candidates", ylabel="share right", ylim=(0, 1), title="best of n")
    picking.legend(fontsize="small")
    for shift, how, label in ((-0.2, WITH, "with reference"), (0.2, WITHOUT, "without")):
        found = [over_seeds([r[how]["located"] for r in results[arm]]) for arm in TITLES]
        blaming.bar(
            [place + shift for place in range(len(found))],
            [interval.mean for interval in found],
            width=0.38,
            yerr=[
                [interval.mean - interval.low for interval in found],
                [interval.high - interval.mean for interval in found],
            ],
            label=label,
            capsize=2,
        )
    likelihood = _over(base, lambda r: r["likelihood"]["located"]).mean
    blaming.axhline(likelihood, color="C2", label="policy's likelihood")
    blaming.axhline(1 / 6, color="0.4", linestyle=":", label="chance")
    names = [title.replace(", ", "\n", 1).replace(", ", ",\n") for title in TITLES.values()]
    blaming.set_xticks(range(len(names)), names, fontsize="x-small")
    blaming.set(ylabel="share of wrong steps located", ylim=(0, 1.02), title="which step is wrong")
    blaming.legend(fontsize="small", loc="lower right")


def _curve(axes: "Axes", label: str, color: str, rows: Sequence[Sequence[float]]) -> None:
    intervals = [over_seeds(values) for values in zip(*rows, strict=True)]
    axes.plot(COUNTS, [interval.mean for interval in intervals], label=label, color=color)
    axes.fill_between(
        COUNTS,
        [interval.low for interval in intervals],
        [interval.high for interval in intervals],
        color=color,
        alpha=0.15,
        linewidth=0,
    )
