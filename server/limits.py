"""Admission before work: a permit at once or 429, and no body larger than the limit."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prm.errors import Overloaded
from server.telemetry import Telemetry


class Permits:
    """A fixed number of requests at once; the next one is told to come back."""

    def __init__(self, count: int, telemetry: Telemetry) -> None:
        self._count = count
        self._taken = 0
        self._waiting = 0
        self._telemetry = telemetry

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold a permit. Raises Overloaded at once when none is left."""
        if self._taken >= self._count:
            self._telemetry.refused.inc()
            raise Overloaded(
                f"this server is busy with {self._count} requests; try again shortly",
                retry_after_s=1,
            )
        self._take(1)
        try:
            yield
        finally:
            self._take(-1)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Leave the permit that the caller holds to others while it waits for something.

        It has it again at the end, at once. Raises Overloaded where as many wait as there are
        permits.
        """
        if self._waiting >= self._count:
            self._telemetry.refused.inc()
            raise Overloaded(
                f"{self._waiting} requests wait for this model already; try again shortly",
                retry_after_s=1,
            )
        self._waiting += 1
        self._take(-1)
        try:
            yield
        finally:
            self._waiting -= 1
            self._take(1)

    def _take(self, count: int) -> None:
        self._taken += count
        self._telemetry.in_flight.set(self._taken)


class BodyLimit:
    """ASGI middleware: refuses a body by its announced length, or while it arrives.

    It does so where the body is read, which is after the key was looked at. `other` are the limits
    of routes with one of their own, by method and path.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, other: Mapping[tuple[str, str], int] | None = None
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._other = other or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        expected = int(announced) if announced.isdigit() else 0
        received = 0
        limit = self._other.get((scope["method"], scope["path"]), self._max_bytes)

        async def limited_receive() -> Message:
            nonlocal received
            # Asked only now: who has no key is to hear of that, and not how large a body may be.
            if expected > limit:
                raise HTTPException(413, _message(expected, limit))
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, _message(received, limit))
            return message

        await self._app(scope, limited_receive, send)


def _message(size: int, limit: int) -> str:
    return (
        f"the body is {size} bytes or more, and this server takes at most {limit}; send it in "
        "several requests"
    )
