"""What became of λ-GRPO's claim: tables, picture and verdict."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from training.experiments.base import Report, Result, Table, Unit, Verdict
from training.experiments.statistics import (
    Interval,
    over_seeds,
    paired_over_seeds,
    two_proportions,
)
from training.experiments.tree_runs import ARMS as TREE_ARMS
from training.experiments.tree_runs import LEARNERS, TREES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of the language model; each λ-GRPO stands behind the GRPO that it is compared with.
ARMS = ("grpo", "lambda_grpo", "grpo_equal_norm", "lambda_grpo_equal_norm")
_TITLES = {
    "grpo": "GRPO",
    "lambda_grpo": "λ-GRPO",
    "grpo_matched": "GRPO, matched norm",
    "grpo_equal_norm": "GRPO, equal norm",
    "lambda_grpo_equal_norm": "λ-GRPO, equal norm",
}
_COLOURS = {"grpo": "tab:orange", "lambda_grpo": "tab:blue", "grpo_matched": "tab:gray"}
_COLOURS |= {"grpo_equal_norm": "tab:orange", "lambda_grpo_equal_norm": "tab:blue"}
# The pilot's learner, on which the verdict stands; the others show how far it reaches.
_MAIN = "table_sgd"

Shares = Sequence[Mapping[str, Sequence[float]]]
Runs = Mapping[str, Sequence[Result]]


def report_on(results: Mapping[Unit, Result]) -> Report:
    """See `Experiment.report`."""
    trees: dict[str, Shares] = {
        name: results[Unit(f"tree_{name}", 0)]["shares"] for name in LEARNERS
    }
    runs = {arm: [r for u, r in sorted(results.items()) if u.arm == arm] for arm in ARMS}
    base = over_seeds([r["accuracy"] for u, r in results.items() if u.arm == "base"])
    verdict, sentence = _verdict(trees[_MAIN], runs)
    return Report(
        verdict=verdict,
        sentence=sentence,
        tables=(_tree_table(trees), _model_table(runs, base), _cost_table(runs)),
        draw=lambda figure: _draw(figure, trees[_MAIN], runs),
        notes=(
            "Times are of steps of 0.1 s, with whatever else the machine did; measured alone, on "
            "the bundled policy: [performance](../performance.md#training). A run of the language "
            "model either learns or does not, so that intervals of means may leave 0 to 1."
        ),
    )


def _verdict(shares: Shares, runs: Runs) -> tuple[Verdict, str]:
    counts = {arm: sum(_successes(row[arm]) for row in shares) for arm in TREE_ARMS}
    trials = sum(len(row["grpo"]) for row in shares)
    p = two_proportions((counts["lambda_grpo"], counts["grpo"]), (trials, trials))
    p_matched = two_proportions((counts["lambda_grpo"], counts["grpo_matched"]), (trials, trials))
    higher, sooner, area = (
        _difference(runs, "lambda_grpo", "grpo", name) for name in ("peak", "peak_step", "area")
    )
    on_tree = p < 0.05 and p_matched < 0.05 and counts["lambda_grpo"] > counts["grpo"]
    in_model = area.is_above_zero and sooner.mean < 0
    verdict: Verdict = (
        "reproduced" if on_tree and in_model
        else "partly reproduced" if on_tree or in_model
        else "not reproduced"
    )  # fmt: skip
    return verdict, (
        f"On the tree (a table, plain SGD) {counts['lambda_grpo']} of {trials} λ-GRPO runs find "
        f"the target, {counts['grpo']} of GRPO's ({_p(p)}), {counts['grpo_matched']} of GRPO's at "
        f"matched gradient norm ({_p(p_matched)}). In the language model it is {_beside(area)}: "
        f"the area under its curve minus GRPO's is {area.mean:+.3f} ({area.low:+.3f} to "
        f"{area.high:+.3f}), its peak minus GRPO's {higher.mean:+.3f} ({higher.low:+.3f} to "
        f"{higher.high:+.3f}), at a step {abs(sooner.mean):.0f} "
        f"{'earlier' if sooner.mean < 0 else 'later'} ({sooner.low:+.0f} to {sooner.high:+.0f})."
    )


def _beside(area: Interval) -> str:
    return "better" if area.low > 0 else "worse" if area.high < 0 else "not told apart from GRPO"


def _tree_table(trees: Mapping[str, Shares]) -> Table:
    head = [f"n {tree.shared}, r_neg {tree.bad:g}" for tree in TREES]
    rows = []
    for learner, shares in trees.items():
        for arm in TREE_ARMS:
            cells = [_cell(row, arm) for row in shares]
            rows.append((LEARNERS[learner], _TITLES[arm], *cells))
    runs = len(next(iter(trees.values()))[0]["grpo"])
    return Table(
        title=f"Tree: runs of {runs} that end on the target",
        head=("policy", "method", *head),
        rows=tuple(rows),
    )


def _cell(row: Mapping[str, Sequence[float]], arm: str) -> str:
    count = _successes(row[arm])
    if arm == "grpo":
        return str(count)
    runs = len(row[arm])
    return f"{count} ({_p(two_proportions((count, _successes(row['grpo'])), (runs, runs)))})"


def _model_table(runs: Runs, base: Interval) -> Table:
    rows = [("base model", str(base), "", "", "", "")]
    for place, arm in enumerate(ARMS):
        columns = (
            [result["accuracy"][-1] for result in runs[arm]],
            *([result[name] for result in runs[arm]] for name in ("peak", "area")),
        )
        steps = [result["peak_step"] for result in runs[arm]]
        partner = ARMS[place - 1] if place % 2 else None
        difference = str(_difference(runs, arm, partner, "area")) if partner else ""
        last, peak, area = (str(over_seeds(column)) for column in columns)
        rows.append((_TITLES[arm], last, peak, f"{fmean(steps):.0f}", area, difference))
    head = ("method", "accuracy at the end", "peak", "step of the peak", "area under the curve")
    return Table(
        title=f"Language model: accuracy on held-out problems, {len(runs['grpo'])} seeds",
        head=(*head, "area minus GRPO's"),
        rows=tuple(rows),
    )


def _cost_table(runs: Runs) -> Table:
    rows = []
    for arm in ARMS:
        phases = [result["phase_seconds"] for result in runs[arm]]
        credit = fmean(phase["credit"] for phase in phases)
        total = fmean(sum(phase.values()) for phase in phases)
        norm = fmean(result["grad_norm"] for result in runs[arm])
        shared = [r["shared_tokens"] for r in runs[arm] if r["shared_tokens"] is not None]
        rows.append(
            (
                _TITLES[arm],
                f"{1000 * credit:.1f}",
                f"{100 * credit / total:.1f} %",
                f"{norm:.3f}",
                f"{100 * fmean(shared):.0f} %" if shared else "",
            )
        )
    head = ("method", "ms for credit per step", "of a step", "gradient norm", "tokens shared")
    return Table(
        title="What it costs: advantages and weights, medians over steps, means over runs",
        head=head,
        rows=tuple(rows),
    )


def _difference(runs: Runs, ours: str, theirs: str, name: str) -> Interval:
    return paired_over_seeds([r[name] for r in runs[ours]], [r[name] for r in runs[theirs]])


def _successes(shares: Sequence[float]) -> int:
    return sum(share > 0.5 for share in shares)


def _p(value: float) -> str:
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.4f}"


def _draw(figure: "Figure", shares: Shares, runs: Runs) -> None:
    left, right = figure.subplots(1, 2)
    count = len(shares[0]["grpo"])
    for place, method in enumerate(TREE_ARMS):
        found = [_successes(row[method]) / count for row in shares]
        at = [number + 0.27 * (place - 1) for number in range(len(shares))]
        left.bar(at, found, width=0.25, label=_TITLES[method], color=_COLOURS[method])
    names = [f"n {tree.shared}\n{tree.bad:g}" for tree in TREES]
    left.set_xticks(range(len(shares)), names)
    left.set(title="tree: runs that find the target", ylim=(0, 1.05), xlabel="n, r_neg")
    left.legend(fontsize="small", loc="lower right")
    for arm in ARMS:
        steps = runs[arm][0]["steps"]
        found_by_step = [
            over_seeds([r["accuracy"][place] for r in runs[arm]]) for place in range(len(steps))
        ]
        style = "--" if arm.endswith("equal_norm") else "-"
        means = [interval.mean for interval in found_by_step]
        right.plot(steps, means, style, label=_TITLES[arm], color=_COLOURS[arm])
        if style == "-":
            lows, highs = ([getattr(i, end) for i in found_by_step] for end in ("low", "high"))
            right.fill_between(steps, lows, highs, alpha=0.15, color=_COLOURS[arm])
    right.set(title="language model: held-out accuracy", xlabel="step", ylim=(0, 1))
    right.grid(visible=True, alpha=0.3)
    right.legend(fontsize="small")
