"""HTTP with a model server: vLLM, or anything with the same routes.

Tries again what was not let in, bounds every wait, and gives each failure a name that tells which
server it was and never its key.
"""

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any, ClassVar, Self, TypeVar

import httpx2
import stamina
from pydantic import BaseModel, ValidationError

from prm.errors import InvalidInput, RungError, Unavailable

CONNECT_TIMEOUT_S = 5.0
ATTEMPTS = 3
# uvicorn, and so vLLM, closes an idle connection after 5 s; ours must go first.
KEEP_ALIVE_S = 4.0
LONGEST_MESSAGE = 300

_Answer = TypeVar("_Answer", bound=BaseModel)


class ServedModel(BaseModel):
    """A model of the server. `max_model_len`, where told, bounds prompt plus answer."""

    id: str
    max_model_len: int | None = None


class ModelServer:
    """The connections to one model server. `aclose` last, or use as an async context.

    >>> async with ModelServer("http://127.0.0.1:8000", role="policy server") as server:
    ...     print(list(await server.models()))
    """

    # Failures before an answer begins after which a request is sent again.
    sent_again_after: ClassVar[tuple[type[Exception], ...]] = (
        httpx2.ConnectError,
        httpx2.ConnectTimeout,
    )

    def __init__(
        self,
        base_url: str,
        *,
        role: str,
        setting: str,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """`base_url` with or without its `/v1`. `timeout_s` bounds any wait for the next bytes.

        `role` names the server in messages; `setting` is where its URL was given. Raises
        InvalidInput when that is no URL.
        """
        url = httpx2.URL(base_url.rstrip("/").removesuffix("/v1"))
        if url.scheme not in ("http", "https") or not url.host:
            raise InvalidInput(f"a {role}'s URL is http://HOST:PORT", param=setting)
        address = f"{url.host}:{url.port}" if url.port else url.host
        self.label = f"the {role} at {address}"
        self._api_key = api_key
        self._client = httpx2.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            timeout=httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            # How much is asked at once was decided before; a pool that waits would only hide it.
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; what is being computed for us ends."""
        await self._client.aclose()

    async def models(self) -> Mapping[str, ServedModel]:
        """What the server serves, by name. Raises Unavailable."""
        answer = await self.call("GET", "/v1/models", None, _ModelList)
        return {model.id: model for model in answer.data}

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None, answer: type[_Answer]
    ) -> _Answer:
        """Ask once and read the answer. Raises Unavailable, or what `refusal` makes of a status."""
        async with self.response(method, path, body) as response:
            return answer.model_validate_json(await response.aread())

    @asynccontextmanager
    async def response(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> AsyncIterator[httpx2.Response]:
        """A good response, its body not yet read. Every failure until its end becomes ours."""
        with self._failures_named():
            response = await self._send(method, path, body)
            try:
                if response.is_error:
                    raise self.refusal(response.status_code, _error_text(await response.aread()))
                yield response
            finally:
                await response.aclose()

    def refusal(self, status: int, message: str) -> RungError:
        """Our error for an error status: the caller's mistake, or the operator's."""
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return Unavailable(f"{self.label} refuses this server's key (status {status})")
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            return Unavailable(f"{self.label} lacks a route that vLLM has (status {status})")
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return InvalidInput(f"{self.label}: {self.public(message)}")
        return Unavailable(f"{self.label} failed (status {status})")

    def public(self, message: str) -> str:
        """A message of the server without our key and without paths of its machine."""
        if self._api_key:
            message = message.replace(self._api_key, "…")
        message = re.sub(r"(?<![\w`])(?:/[\w.@+-]+){2,}/?", "…", " ".join(message.split()))
        return message if len(message) <= LONGEST_MESSAGE else message[:LONGEST_MESSAGE] + "…"

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> httpx2.Response:
        """Try a few times to be let in; nothing has been computed for us before that."""
        async for attempt in stamina.retry_context(
            on=(*self.sent_again_after, _NotNow),
            attempts=ATTEMPTS,
            timeout=2 * CONNECT_TIMEOUT_S,
            wait_max=1.0,
        ):
            with attempt:
                request = self._client.build_request(method, path, json=body)
                response = await self._client.send(request, stream=True)
                if response.status_code in (
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    HTTPStatus.TOO_MANY_REQUESTS,
                ):
                    await response.aclose()
                    raise _NotNow(response.status_code)
                return response
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except _NotNow as error:
            raise Unavailable(f"{self.label} takes no requests now (status {error})") from None
        except httpx2.TimeoutException as error:
            raise Unavailable(f"{self.label} did not answer in time") from error
        except httpx2.TransportError as error:
            raise Unavailable(f"{self.label} does not answer ({type(error).__name__})") from error
        except ValidationError as error:
            raise Unavailable(
                f"{self.label} answers in another shape than vLLM's: "
                f"{error.error_count()} errors in {error.title}"
            ) from error


class Failure(BaseModel):
    """What went wrong, in the server's words. `code` is a status where it is a number."""

    message: str | None = None
    code: int | str | None = None

    @property
    def status(self) -> int:
        """The HTTP status that this failure would have had on its own."""
        return self.code if isinstance(self.code, int) else HTTPStatus.INTERNAL_SERVER_ERROR


class _ModelList(BaseModel):
    data: list[ServedModel]


class _ErrorBody(BaseModel):
    error: Failure | None = None


class _NotNow(Exception):
    """The server is up and takes no requests at the moment: worth another try."""


def _error_text(body: bytes) -> str:
    """The message of an error body: vLLM's has it in `error`, SGLang's at the top."""
    try:
        error = _ErrorBody.model_validate_json(body).error
        return (error or Failure.model_validate_json(body)).message or ""
    except ValidationError:
        return ""
