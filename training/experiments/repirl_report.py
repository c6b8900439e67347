"""What the experiment on rePIRL found, as a page."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from training.experiments.base import Report, Result, Table, Verdict
from training.experiments.statistics import Interval, area_under, over_seeds, paired_over_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# An arm's results, seed by seed.
Arms = Mapping[str, Sequence[Result]]

JUDGES = {
    "paper": "rePIRL: paper's loss, weights per problem",
    "pooled": "the same, weights pooled over the batch",
    "unweighted": "the same, no weights",
    "released": "the same, micro-batches of one (released)",
    "mle": "rePIRL: likelihood (Eq. 5)",
    "no_pseudo": "rePIRL without pseudo-experts",
    "noise_0.3": "rePIRL, experts err at 30 % of steps",
    "head": "rePIRL, head over actions",
    "ce": "outcome cross-entropy, with demonstrations",
    "head_ce": "outcome cross-entropy, head over actions",
    "implicit": "implicit PRM (outcomes alone)",
    "base": "policy's likelihood",
}
POLICIES = {
    "rloo": "RLOO, outcomes alone",
    "dense_0.1": "+ rePIRL's PRM, c_p 0.1",
    "dense_1": "+ rePIRL's PRM, c_p 1",
    "only": "PRM alone, trained along",
    "only_frozen": "PRM alone, frozen",
    "prime": "PRIME",
    "imitation": "imitation of the demonstrations",
}
_FIGURES = ("best_of_n", "vote", "auc", "first_error_f1")
_HEAD = ("best-of-8", "weighted vote", "AUC in a problem", "first-error F1")


def report_on(arms: Arms) -> Report:
    """See `Experiment.report`."""
    claims = _claims(arms)
    held = [holds for _, holds in claims]
    verdict: Verdict = "partly reproduced"
    if all(held):
        verdict = "reproduced"
    elif not any(held):
        verdict = "not reproduced"
    return Report(
        verdict=verdict,
        sentence="; ".join(sentence for sentence, _ in claims) + ".",
        tables=(_judges(arms), _against(arms), _policies(arms)),
        draw=lambda figure: _draw(figure, arms),
        notes=_notes(arms),
    )


def _claims(arms: Arms) -> list[tuple[str, bool]]:
    """What is claimed, in the words of what was found, and whether it held."""
    return [
        _claim(
            "Best-of-8 by rePIRL's PRM beats the majority of 8",
            _difference(arms, ("paper", "best_of_n"), ("base", "majority@8")),
        ),
        _claim("it beats the implicit PRM's", _beats(arms, "implicit", "best_of_n")),
        _claim(
            "it beats that of outcome cross-entropy on the same data",
            _beats(arms, "ce", "best_of_n"),
        ),
        _claim(
            "it finds first errors better than the implicit PRM",
            _beats(arms, "implicit", "first_error_f1"),
        ),
        _claim(
            "as a dense reward (c_p 0.1) it raises avg@16 over RLOO's",
            _difference(arms, ("dense_0.1", "avg@16"), ("rloo", "avg@16")),
        ),
    ]


def _claim(claim: str, difference: Interval) -> tuple[str, bool]:
    answer = "yes" if difference.is_above_zero else "no"
    if difference.high < 0:
        answer = "no, it is worse"
    return f"{claim}: {answer}, by {_signed(difference)}", difference.is_above_zero


def _values(arms: Arms, arm: str, name: str) -> list[float]:
    return [result[name] for result in arms[arm]]


def _difference(arms: Arms, ours: tuple[str, str], theirs: tuple[str, str]) -> Interval:
    return paired_over_seeds(_values(arms, *ours), _values(arms, *theirs))


def _beats(arms: Arms, other: str, name: str) -> Interval:
    return _difference(arms, ("paper", name), (other, name))


def _signed(interval: Interval) -> str:
    return f"{interval.mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def _judges(arms: Arms) -> Table:
    rows = [
        (title, *(str(over_seeds(_values(arms, arm, name))) for name in _FIGURES))
        for arm, title in JUDGES.items()
    ]
    return Table("Judges of the policy's rollouts", ("judge", *_HEAD), tuple(rows))


def _against(arms: Arms) -> Table:
    rows = []
    for arm, title in JUDGES.items():
        if arm != "paper":
            rows.append((title, *(_signed(_beats(arms, arm, name)) for name in _FIGURES)))
    for name, title in (("majority@8", "majority of 8"), ("pass@8", "any of 8 (ceiling)")):
        over = [
            _signed(_difference(arms, ("paper", figure), ("base", name)))
            for figure in ("best_of_n", "vote")
        ]
        rows.append((title, *over, "", ""))
    head = ("rePIRL (first row above) less", *_HEAD)
    return Table("What the loss is worth", head, tuple(rows))


def _policies(arms: Arms) -> Table:
    rows = [("the policy before", *(_mean(arms, "base", name) for name in _TESTED), "", "")]
    for arm, title in POLICIES.items():
        area = [_area(result, before) for result, before in _curves(arms, arm)]
        over = "" if arm == "rloo" else _signed(_difference(arms, (arm, "avg@16"), _RLOO))
        tested = (_mean(arms, arm, name) for name in _TESTED)
        rows.append((title, *tested, over, f"{fmean(area):.3f}"))
    head = ("reward", *_TESTED, "avg@16 less RLOO's", "mean of avg@4 over the run")
    return Table("Policies", head, tuple(rows))


_TESTED = ("avg@16", "pass@16")
_RLOO = ("rloo", "avg@16")


def _mean(arms: Arms, arm: str, name: str) -> str:
    return str(over_seeds(_values(arms, arm, name)))


def _curves(arms: Arms, arm: str) -> list[tuple[Result, float]]:
    return list(zip(arms[arm], _values(arms, "base", "avg@16"), strict=True))


def _area(result: Result, before: float) -> float:
    return area_under([0, *result["steps"]], [before, *result["averages"]])


def _notes(arms: Arms) -> str:
    told = ", ".join(
        f"{name} {_mean(arms, 'base', name)}" for name in ("avg@8", "majority@8", "pass@8")
    )
    ess = [fmean(result["ess"]) for result in arms["paper"]]
    pooled = [fmean(result["ess"]) for result in arms["pooled"]]
    return (
        f"The rollouts by themselves: {told}. Effective share of the failed pool under rePIRL's "
        f"weights, mean over a run: {fmean(ess):.2f} per problem, {fmean(pooled):.3f} pooled."
    )


def _draw(figure: "Figure", arms: Arms) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_judges(left, arms)
    steps = [0, *arms["rloo"][0]["steps"]]
    for arm, title in POLICIES.items():
        runs = [[before, *result["averages"]] for result, before in _curves(arms, arm)]
        right.plot(steps, [fmean(at) for at in zip(*runs, strict=True)], label=title)
    right.set(xlabel="step", ylabel="avg@4, validation problems")
    right.legend(fontsize=7, frameon=False)


def _draw_judges(axes: "Axes", arms: Arms) -> None:
    places = range(len(JUDGES))
    for shift, name, title in ((-0.2, "best_of_n", "best-of-8"), (0.2, "first_error_f1", "F1")):
        found = [over_seeds(_values(arms, arm, name)) for arm in JUDGES]
        halves = [interval.high - interval.mean for interval in found]
        axes.barh(
            [place + shift for place in places],
            [interval.mean for interval in found],
            height=0.36,
            label=title,
            xerr=halves if len(arms["paper"]) > 1 else None,
            error_kw={"elinewidth": 0.8},
        )
    for name, style in (("majority@8", ":"), ("pass@8", "--")):
        at = fmean(_values(arms, "base", name))
        axes.axvline(at, color="0.4", linestyle=style, linewidth=1, label=name)
    axes.set_yticks(list(places), list(JUDGES.values()), fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
