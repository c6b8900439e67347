"""What routes ask for, as `Annotated` aliases."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server.auth import Keys, Scope
from server.errors import ClientGone, NotAllowed, NotAuthenticated
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


def _require(scope: Scope) -> Callable[..., None]:
    def check(
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
        if not record.allows(scope):
            raise NotAllowed(f"this API key has no scope {scope!r}")

    return check


ServicesDep = Annotated[Services, Depends(_services)]
Permit = Depends(_permit, scope="request")
MayScore = Depends(_require("score"))
MaySearch = Depends(_require("search"))


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
