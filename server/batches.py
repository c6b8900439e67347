"""A file of items as several scoring requests, and their errors in the file's own terms."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from prm.errors import InvalidInput
from prm.evaluation.labelled import Labelled, Scored
from server.connection import Answers
from server.schemas.score import ScoreResponse

# Enough that a request's overhead does not count, few enough that a progress bar moves.
ITEMS_PER_REQUEST = 64
_ITEM = re.compile(r"items(?:\[(\d+)\]|\.(\d+))[.:]? ?")


async def score_in_batches(
    answers: Answers,
    request: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    places: Sequence[str],
) -> AsyncIterator[ScoreResponse]:
    """Answers for all items, in order; `places[n]` says where item n came from.

    Requests become smaller where the server takes less. Raises InvalidInput naming the place of an
    item that cannot be scored, and whatever else `Answers.score` raises.
    """
    start, size = 0, ITEMS_PER_REQUEST
    while start < len(items):
        batch = items[start : start + size]
        try:
            response = await answers.score({**request, "items": batch})
        except InvalidInput as error:
            if fewer := _fewer(error, len(batch)):
                size = fewer
                continue
            raise _placed(error, places[start : start + size]) from error
        yield response
        start += len(batch)


async def scored_in_batches(
    answers: Answers, key: str, labelled: Sequence[Labelled], items: Sequence[Mapping[str, Any]]
) -> AsyncIterator[list[Scored]]:
    """The same of labelled responses and their items: scored by this version, in order, in batches.

    Items are made by the caller, so that a line that has none is told before anything is started.
    """
    places = [line.where for line in labelled]
    lines = iter(labelled)
    async for response in score_in_batches(answers, {"model": key}, items, places):
        yield [next(lines).scored([step.score for step in item.steps]) for item in response.data]


def _fewer(error: InvalidInput, size: int) -> int:
    """How many items to send instead; 0 when neither their number nor their size is wrong."""
    is_too_much = error.param == "items" or str(error).startswith("413:")
    return size // 2 if is_too_much else 0


def _placed(error: InvalidInput, places: Sequence[str]) -> InvalidInput:
    """A server counts the items of a request; a person counts the lines of a file."""
    found = _ITEM.search(error.param or "") or _ITEM.search(str(error))
    if found is None:
        if len(places) > 1:
            return error
        return InvalidInput(f"{places[0]}: {error}")
    return InvalidInput(f"{places[int(found[1] or found[2])]}: {_ITEM.sub('', str(error), 1)}")
