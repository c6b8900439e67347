"""What routes ask for: services, a permit, a key with a scope."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server.auth import Keys
from server.errors import ClientGone, NotAllowed, NotAuthenticated
from server.key_file import Scope
from server.limits import Permits
from server.services import Services

Result = TypeVar("Result")

_bearer = HTTPBearer(auto_error=False, description="An API key, where the server asks for one.")


def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


async def _permit(request: Request) -> AsyncIterator[None]:
    permits = request.app.state.permits
    assert isinstance(permits, Permits)
    async with permits.one():
        yield


class _KeyWith:
    """A dependency: the caller has a key with one of these scopes, where keys are asked for."""

    def __init__(self, *scopes: Scope) -> None:
        self._scopes = scopes

    async def __call__(
        self,
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> None:
        keys = request.app.state.keys
        assert isinstance(keys, Keys)
        if not keys.are_required:
            return
        if credentials is None:
            raise NotAuthenticated("send an API key: Authorization: Bearer KEY")
        record = keys.find(credentials.credentials)
        if record is None:
            raise NotAuthenticated("this API key is not known here")
        if not any(map(record.allows, self._scopes)):
            raise NotAllowed(f"this API key has no scope {' or '.join(map(repr, self._scopes))}")
        request.state.key_id = record.id


class KeyFirst(APIRoute):
    """A route with a body: a caller without the key is refused before the body is read.

    FastAPI reads the body before it asks any dependency, so what `MayScore` and the like ask is
    asked here too.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `fastapi.routing.APIRoute`."""
        handle = super().get_route_handler()
        asked = [d.dependency for d in self.dependencies if isinstance(d.dependency, _KeyWith)]

        async def handle_if_allowed(request: Request) -> Response:
            for has_key in asked:
                await has_key(request, await _bearer(request))
            return await handle(request)

        return handle_if_allowed


def _caller(
    request: Request,
    named: Annotated[
        str | None,
        Header(
            alias="X-Rung-Caller",
            max_length=200,
            description="Who asks, where many ask with one key: a canary's callers stay its own.",
        ),
    ] = None,
) -> str:
    """Who asks: by the header, else by the key, else by the address."""
    key_id = getattr(request.state, "key_id", None)
    address = request.client.host if request.client else ""
    return f"{key_id or address}/{named or ''}"


def _key_id(request: Request) -> str:
    """Whose labels these are. Where no key is asked for, all callers are one."""
    return getattr(request.state, "key_id", None) or "local"


ServicesDep = Annotated[Services, Depends(_services)]
Caller = Annotated[str, Depends(_caller)]
KeyId = Annotated[str, Depends(_key_id)]
Permit = Depends(_permit, scope="request")
MayScore = Depends(_KeyWith("score"))
MaySearch = Depends(_KeyWith("search"))
MayLabel = Depends(_KeyWith("score", "search"))
MayTrain = Depends(_KeyWith("train"))
MayAdminister = Depends(_KeyWith("admin"))


async def until_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Do the work for as long as the caller is there and the server's time limit allows.

    Raises TimeoutError at the limit, ClientGone when the caller has left.
    """
    timeout_s = _services(request).settings.request_timeout_s
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGone
        raise TimeoutError
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
