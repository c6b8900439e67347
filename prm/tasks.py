"""Work done at the same time, of which a part alone is of no use."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")


async def all_or_none(work: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Wait for all; when one fails or the caller leaves, end the others before going on."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
