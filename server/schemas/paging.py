"""Pages of lists, as OpenAI's clients turn them: `after` the last item that was seen."""

from collections.abc import Sequence
from typing import Annotated, TypeVar

from fastapi import Query

from prm.errors import NotFound

Item = TypeVar("Item")

After = Annotated[
    str | None, Query(max_length=200, description="The last item of the page before.")
]


def page_of(
    ids: Sequence[str], items: Sequence[Item], after: str | None, limit: int
) -> tuple[list[Item], bool]:
    """What follows `after`, at most `limit`, and whether there is more. Raises NotFound."""
    first = 0
    if after is not None:
        if after not in ids:
            raise NotFound(f"no item {after[:100]!r} in this list", param="after")
        first = ids.index(after) + 1
    return list(items[first : first + limit]), len(items) > first + limit
