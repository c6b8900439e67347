"""Measured accuracy against tokens of a (policy, PRM) pair, and what to run for a budget.

Whether a PRM helps, and how much a wider search helps, differs from pair to pair (Snell et al.,
arXiv 2408.03314 §5-7): `auto` therefore goes by what was measured, and where the PRM does not beat
voting it votes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from prm.evaluation.reliability import Interval
from search.records import Record
from search.selection import VoteSelection

# A fallback votes among plain samples: its winner has the most, or the most weighted, of them
# behind it. A vote among what a PRM has steered to trusts the PRM as much as any search does.
VOTES = get_args(VoteSelection)
SAMPLING = ("best_of_n", "adaptive")


class CurvePoint(BaseModel):
    """One strategy at one width, measured.

    `strategy` is what a request's `strategy` holds, `mean_tokens` what it generated for a problem
    on average, discarded candidates included. `gain` is its accuracy minus that of plain majority
    voting at no more tokens on the same problems, None for voting itself and where voting was not
    measured. All intervals are 95 % by a bootstrap over problems.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: dict[str, JsonValue]
    uses_prm: bool
    mean_tokens: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    accuracy: Interval
    gain: Interval | None = None

    @property
    def label(self) -> str:
        """The strategy in a few words."""
        rest = [f"{name}={value}" for name, value in self.strategy.items() if name != "type"]
        return " ".join([str(self.strategy.get("type")), *rest])


class Curves(Record):
    """All measured points of a pair, over `problems` problems.

    `unit` says what `mean_tokens` counts: characters where a recording had no token counts, which
    is no measure for a budget in tokens.
    """

    folder: ClassVar[str] = "curves"

    unit: Literal["tokens", "characters"] = "tokens"
    problems: int = Field(ge=1)
    points: tuple[CurvePoint, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to run: `settings` as in a request's `strategy`, and why, as a sentence."""

    settings: Mapping[str, JsonValue]
    reason: str


def choose(
    curves: Curves | None,
    token_budget: int | None,
    *,
    has_prm: bool = True,
    tokens_per_candidate: int = 512,
    max_candidates: int = 64,
) -> Choice:
    """The best measured strategy whose mean cost is within the budget (None: no limit).

    One that a PRM decides is taken only where its gain over majority voting is above zero by its
    whole interval; else the most accurate of the votes, weighted ones among them. Where nothing was
    measured: weighted majority (majority without a PRM) of as many candidates of
    `tokens_per_candidate` as the budget pays, at most `max_candidates`.
    """
    if curves is None or curves.unit != "tokens":
        return _unmeasured(token_budget, has_prm, tokens_per_candidate, max_candidates)
    points = [point for point in curves.points if has_prm or not point.uses_prm]
    if not points:
        return _unmeasured(token_budget, has_prm, tokens_per_candidate, max_candidates)
    affordable = [p for p in points if token_budget is None or p.mean_tokens <= token_budget]
    if not affordable:
        cheapest = min(points, key=lambda p: (p.mean_tokens, -p.accuracy.value))
        return Choice(
            settings=cheapest.strategy,
            reason=f"nothing measured fits {token_budget} tokens; {cheapest.label} is the cheapest "
            f"with {cheapest.mean_tokens:.0f} tokens a problem.",
        )
    best = _most_accurate(affordable)
    found = f"{best.label} had the best accuracy within the budget, {_measured(best, curves)}"
    if not best.uses_prm:
        told = "; nothing that the PRM decides was better." if has_prm else "."
        return Choice(settings=best.strategy, reason=found + told)
    if best.gain is None or best.gain.low > 0:
        told = "" if best.gain is None else f", {_signed(best.gain)} points over majority voting"
        return Choice(settings=best.strategy, reason=f"{found}{told}.")
    votes = [p for p in affordable if _is_plain_vote(p)]
    if not votes:
        return Choice(
            settings=best.strategy,
            reason=f"{found}; its gain over majority voting, {_signed(best.gain)} points, is "
            "within chance, but no vote was measured within the budget.",
        )
    vote = _most_accurate(votes)
    return Choice(
        settings=vote.strategy,
        reason=f"the PRM does not beat voting here for certain ({best.label}: "
        f"{_signed(best.gain)} points); {vote.label} is the best vote within the budget, "
        f"{_measured(vote, curves)}.",
    )


def _unmeasured(
    token_budget: int | None, has_prm: bool, tokens_per_candidate: int, max_candidates: int
) -> Choice:
    n = max_candidates if token_budget is None else token_budget // tokens_per_candidate
    n = min(max(n, 1), max_candidates)
    selection = "weighted" if has_prm else "majority"
    cause = "nothing was measured for this policy" + (" and PRM" if has_prm else "")
    return Choice(
        settings={"type": "best_of_n", "n": n, "selection": selection},
        reason=f"{cause}; {selection} voting over {n} candidates of about {tokens_per_candidate} "
        "tokens is the safe choice.",
    )


def _is_plain_vote(point: CurvePoint) -> bool:
    settings = point.strategy
    return settings.get("type") in SAMPLING and settings.get("selection") in VOTES


def _most_accurate(points: Sequence[CurvePoint]) -> CurvePoint:
    return min(points, key=lambda p: (-p.accuracy.value, p.mean_tokens))


def _measured(point: CurvePoint, curves: Curves) -> str:
    shown = point.accuracy
    return (
        f"{100 * shown.value:.1f} % [{100 * shown.low:.1f}, {100 * shown.high:.1f}] on "
        f"{curves.problems} problems with {point.mean_tokens:.0f} tokens each"
    )


def _signed(gain: Interval) -> str:
    return f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
