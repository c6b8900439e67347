"""What was fitted for a search's PRM and policy: what votes weigh, and when to stop."""

from prm.errors import InvalidInput
from prm.manifest import ModelVersion
from search.selection import SelectionRecord, VoteSelection
from search.strategies.adaptive import THRESHOLD, WAVE, Adaptive
from server.recorded import recorded
from server.schemas.search import SearchRequest


async def selection_fitted(request: SearchRequest, prm: ModelVersion) -> SelectionRecord | None:
    """The record that the strategy makes use of, None where it does without.

    Raises InvalidInput where selection "calibrated" is asked for and nothing was fitted.
    """
    is_asked_for = getattr(request.strategy, "selection", None) == "calibrated"
    if not is_asked_for and not isinstance(request.strategy, Adaptive):
        return None
    record = await recorded(SelectionRecord, prm, request.policy)
    if record is None and is_asked_for:
        raise InvalidInput(
            f"strategy.selection: for {prm.key} and policy {request.policy!r} nothing is fitted; "
            "choose another, or fit one with `rung eval rerank --model --policy`",
            param="strategy.selection",
        )
    return record


def with_fitted(
    request: SearchRequest, record: SelectionRecord | None, *, has_prm: bool, has_response: bool
) -> SearchRequest:
    """`adaptive` with everything settled that was left open: by the record, where there is one.

    An aggregation that is named is how votes are to be weighed, whatever was fitted. Where it is
    not, and the response has a probability of being right (`has_response`), that is the score.
    """
    strategy = request.strategy
    if not isinstance(strategy, Adaptive):
        return request
    selection = strategy.selection
    if selection is None:
        is_fitted = record is not None and strategy.aggregation is None
        selection = "calibrated" if is_fitted else "weighted" if has_prm else "majority"
    settled = {
        "selection": selection,
        "wave": strategy.wave or (record.wave if record else WAVE),
        "threshold": strategy.threshold or _threshold(record, selection),
        "aggregation": strategy.aggregation or ("fitted" if has_response else None),
    }
    return request.model_copy(update={"strategy": strategy.model_copy(update=settled)})


def _threshold(record: SelectionRecord | None, selection: VoteSelection) -> float:
    """What the record says for votes of this kind; for others nothing was fitted."""
    if record is None or selection == "weighted":
        return THRESHOLD
    return record.threshold if selection == "calibrated" else record.threshold_votes
