"""Work beside other work: where it is done, and work of which a part alone is of no use."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

_T = TypeVar("_T")
_P = ParamSpec("_P")

# Cutting and tokenising so much text takes less than a millisecond, and going to a thread and back
# costs as much of a short request's time.
SHORT_CHARACTERS = 2_000


async def off_loop_if_long(
    characters: int, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    """Call a function whose work grows with a text's length: in a thread, unless it is short."""
    if characters <= SHORT_CHARACTERS:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


async def all_or_none(work: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Wait for all; when one fails or the caller leaves, end the others before going on."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
