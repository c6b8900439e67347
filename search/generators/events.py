"""Server-sent events of a policy server: the data of each, read strictly.

httpx2's own reader turns bytes that are no UTF-8 into U+FFFD without a word, and allows an event
less than the echoed ids of a long prompt take. What comes here becomes part of a solution.
"""

from collections.abc import AsyncGenerator

import httpx2

from prm.errors import Unavailable

# vLLM repeats the prompt's ids in its first event: 8 bytes for each of a million tokens.
MAX_EVENT_BYTES = 16 << 20
CONTENT_TYPE = "text/event-stream"


def is_event_stream(response: httpx2.Response) -> bool:
    """Whether the server says that it sends events."""
    sent, _, _ = response.headers.get("content-type", "").partition(";")
    return bool(sent.strip().lower() == CONTENT_TYPE)


async def event_data(response: httpx2.Response, server: str) -> AsyncGenerator[str]:
    """The data of each event. Raises Unavailable, naming `server`, for what is no such stream.

    Lines end in LF or CR LF; comments, names and ids of events are passed over.
    """
    data: list[str] = []
    size = 0
    async for line in _lines(response, server):
        if not line:
            if data:
                yield "\n".join(data)
            data, size = [], 0
            continue
        size += len(line)
        if size > MAX_EVENT_BYTES:
            raise _too_long(server)
        field, _, value = line.partition(b":")
        if field == b"data":
            try:
                data.append(value.removeprefix(b" ").decode())
            except UnicodeDecodeError as error:
                raise Unavailable(f"{server} sends text that is not UTF-8") from error


async def _lines(response: httpx2.Response, server: str) -> AsyncGenerator[bytes]:
    """Whole lines without their ends, however the bytes were cut on the way."""
    pending = bytearray()
    async for chunk in response.aiter_bytes():
        pending += chunk
        if b"\n" in chunk:
            *lines, rest = bytes(pending).split(b"\n")
            pending = bytearray(rest)
            for line in lines:
                yield line.removesuffix(b"\r")
        if len(pending) > MAX_EVENT_BYTES:
            raise _too_long(server)


def _too_long(server: str) -> Unavailable:
    return Unavailable(f"{server} sends an event of more than {MAX_EVENT_BYTES} bytes")
