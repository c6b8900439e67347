"""A job's events as server-sent events, to the job's end."""

import asyncio
import time
from collections.abc import AsyncIterator

from fastapi.sse import format_sse_event

from server.event_stream import json_event
from server.jobs.store import JobStore
from server.schemas.fine_tuning import JobEvent

_POLL_S = 0.3
# Proxies close what says nothing for a minute.
_KEEP_ALIVE_S = 15.0


async def follow(store: JobStore, job_id: str, after: str | None) -> AsyncIterator[bytes]:
    """Events in order from behind `after`, each as it happens, and `[DONE]` when the job is over.

    Who was cut off goes on with the last id that he has.
    """
    place, said, is_over, was_over = 0, time.monotonic(), False, False
    while not was_over:
        # Once more behind the end: its last word may be told when the state is written.
        was_over = is_over
        is_over = (await asyncio.to_thread(store.state, job_id)).is_finished
        events, place = await asyncio.to_thread(store.events_from, job_id, place)
        if after is not None:
            events = _behind(events, after)
            after = None
        for event in events:
            said = time.monotonic()
            yield json_event(event.model_dump_json())
        if time.monotonic() - said > _KEEP_ALIVE_S:
            said = time.monotonic()
            yield b": waiting\n\n"
        if not was_over:
            await asyncio.sleep(_POLL_S)
    yield format_sse_event(data_str="[DONE]")


def _behind(events: list[JobEvent], after: str) -> list[JobEvent]:
    """Those behind an event; all of them where it is none of these."""
    return events[next((at + 1 for at, event in enumerate(events) if event.id == after), 0) :]
