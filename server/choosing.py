"""What strategy `auto` stands for: the choice for a budget, by the pair's measured curves."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from prm.manifest import ModelVersion
from search.budget import EFFORTS, ReasoningEffort
from search.curves import CurvePoint, Curves, choose
from search.strategies import Strategy
from search.strategies.auto import Auto
from server.recorded import recorded
from server.schemas.search import SearchRequest

# Spent where the caller names no budget: without one, the widest search would always be chosen.
DEFAULT_EFFORT: ReasoningEffort = "medium"
# Votes of more candidates than this gain next to nothing (Wang et al., arXiv 2203.11171, figure 2).
_MOST_VOTES = 64
_STRATEGIES: TypeAdapter[Strategy] = TypeAdapter(Strategy)


async def with_chosen(
    request: SearchRequest, prm: ModelVersion | None, *, max_candidates: int
) -> tuple[SearchRequest, Mapping[str, Any] | None]:
    """The request with a strategy in the place of `auto`, and what was chosen and why.

    Any other strategy stays as it is. What does not fit the server's limit or the budget, or was
    measured with other settings than there are now, is not chosen.
    """
    if not isinstance(request.strategy, Auto):
        return request, None
    effort = request.reasoning_effort or DEFAULT_EFFORT
    tokens = request.budget.tokens or EFFORTS[effort].tokens
    assert tokens is not None
    curves = await recorded(Curves, prm, request.policy) if prm else None
    usable = _usable(curves, min(max_candidates, tokens)) if curves else None
    choice = choose(
        usable,
        tokens,
        has_prm=prm is not None,
        tokens_per_candidate=request.sampling.max_tokens,
        max_candidates=min(_MOST_VOTES, max_candidates, tokens),
    )
    strategy = _STRATEGIES.validate_python(choice.settings)
    chosen = {"strategy": strategy.model_dump(), "reason": choice.reason}
    return request.model_copy(update={"strategy": strategy, "reasoning_effort": effort}), chosen


def _usable(curves: Curves, max_candidates: int) -> Curves | None:
    points = tuple(point for point in curves.points if _is_usable(point, max_candidates))
    return curves.model_copy(update={"points": points}) if points else None


def _is_usable(point: CurvePoint, max_candidates: int) -> bool:
    try:
        strategy = _STRATEGIES.validate_python(point.strategy)
    except ValidationError:
        return False
    if point.strategy.keys() != strategy.model_dump().keys():
        # A setting that it does not name was not there yet: its default is not what was measured.
        return False
    return not isinstance(strategy, Auto) and strategy.most_candidates <= max_candidates
