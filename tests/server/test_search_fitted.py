"""How `adaptive` is settled by what was fitted, where it was left open."""

from typing import Any

import pytest

from prm.manifest import ModelRef
from search.selection import SelectionRecord, Selector, Term
from search.strategies.adaptive import Adaptive
from search.strategies.beam import Beam
from server.schemas.search import SearchRequest
from server.search_fitted import with_fitted

RECORD = SelectionRecord(
    prm=ModelRef(name="p", version="1", weights_sha256="0" * 64),
    policy="writer",
    created=1,
    command="by hand",
    selector=Selector(
        intercept=0, l2=1, terms=(Term(feature="logit_last", mean=0, scale=1, weight=1),)
    ),
    threshold=0.9,
    threshold_votes=0.8,
    wave=2,
    budget=0.25,
    problems=100,
    candidates=1600,
    accuracy={},
)


@pytest.mark.parametrize(
    ("given", "record", "has_prm", "has_response", "settled"),
    [
        ({}, RECORD, True, False, ("calibrated", 0.9, 2, None)),
        ({}, RECORD, True, True, ("calibrated", 0.9, 2, "fitted")),
        ({"selection": "majority"}, RECORD, True, False, ("majority", 0.8, 2, None)),
        ({"selection": "weighted"}, RECORD, True, True, ("weighted", 0.95, 2, "fitted")),
        ({"aggregation": "min"}, RECORD, True, True, ("weighted", 0.95, 2, "min")),
        ({"threshold": 0.7, "wave": 5}, RECORD, True, False, ("calibrated", 0.7, 5, None)),
        ({}, None, True, True, ("weighted", 0.95, 4, "fitted")),
        ({}, None, True, False, ("weighted", 0.95, 4, None)),
        ({}, None, False, False, ("majority", 0.95, 4, None)),
    ],
)
def test_what_is_left_open_is_settled_by_the_record_and_the_rest_stays(
    given: dict[str, Any],
    record: SelectionRecord | None,
    has_prm: bool,
    has_response: bool,
    settled: tuple[Any, ...],
) -> None:
    strategy = {"type": "adaptive", "n": 8} | given
    request = SearchRequest.model_validate(
        {"policy": "writer", "problem": "?", "strategy": strategy}
    )
    found = with_fitted(request, record, has_prm=has_prm, has_response=has_response)
    names = ("selection", "threshold", "wave", "aggregation")
    assert tuple(getattr(found.strategy, name) for name in names) == settled
    assert isinstance(found.strategy, Adaptive)
    assert found.strategy.n == 8


def test_other_strategies_stay_as_they_are() -> None:
    request = SearchRequest(policy="writer", problem="?", strategy=Beam())
    assert with_fitted(request, RECORD, has_prm=True, has_response=True) is request
