"""HTTP with a model server: vLLM, or anything with the same routes.

Tries again what was not let in, bounds every wait and every body, and gives each failure a name
that tells which server it was and never its key.
"""

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
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
# A server that asks for a longer wait (`Retry-After`) is not waited for.
LONGEST_WAIT_S = 5.0
# Of an answer that is read whole: the ids of a million tokens have a tenth of that.
MAX_BODY_BYTES = 64 << 20

_Answer = TypeVar("_Answer", bound=BaseModel)


class ServedModel(BaseModel):
    """A model of the server. `max_model_len`, where told, bounds prompt plus answer.

    `owned_by` tells the kind of server: vLLM says `vllm`, SGLang `sglang`.
    """

    id: str
    max_model_len: int | None = None
    owned_by: str | None = None


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
    # And statuses after which it is.
    sent_again_statuses: ClassVar[frozenset[int]] = frozenset(
        {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}
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
        self.address = f"{url.host}:{url.port}" if url.port else url.host
        self.label = f"the {role} at {self.address}"
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
            return answer.model_validate_json(await self.body(response))

    async def body(self, response: httpx2.Response) -> bytes:
        """All of a body. Raises Unavailable when it is larger than any answer can be."""
        read = bytearray()
        async for chunk in response.aiter_bytes():
            read += chunk
            if len(read) > MAX_BODY_BYTES:
                raise Unavailable(f"{self.label} answers with more than {MAX_BODY_BYTES} bytes")
        return bytes(read)

    @asynccontextmanager
    async def response(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> AsyncIterator[httpx2.Response]:
        """A good response, its body not yet read. Every failure until its end becomes ours."""
        with self._failures_named():
            response = await self._send(method, path, body)
            try:
                if response.is_error:
                    raise self.refusal(response.status_code, _error_text(await self.body(response)))
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
            on=self._wait_before_the_next,
            attempts=ATTEMPTS,
            timeout=2 * CONNECT_TIMEOUT_S,
            wait_max=1.0,
        ):
            with attempt:
                request = self._client.build_request(method, path, json=body)
                response = await self._client.send(request, stream=True)
                if response.status_code in self.sent_again_statuses:
                    await response.aclose()
                    raise _NotNow(response)
                return response
        raise AssertionError("the last attempt returns or raises")

    def _wait_before_the_next(self, error: Exception) -> bool | float:
        """Whether to try once more; a number is the wait in seconds that the server asked for."""
        if isinstance(error, _NotNow):
            wait_s = error.retry_after_s
            return True if wait_s is None else wait_s <= LONGEST_WAIT_S and wait_s
        return isinstance(error, self.sent_again_after)

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except _NotNow as error:
            says = (
                "takes no requests now"
                if error.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
                else "failed"
            )
            raise Unavailable(
                f"{self.label} {says} (status {error.status})",
                retry_after_s=max(1.0, error.retry_after_s or 0.0),
            ) from None
        except httpx2.TimeoutException as error:
            raise Unavailable(f"{self.label} did not answer in time") from error
        except httpx2.RequestError as error:
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
    """The server is up and did not let a request in: worth another try, in `retry_after_s`."""

    def __init__(self, response: httpx2.Response) -> None:
        super().__init__(response.status_code)
        self.status = response.status_code
        self.retry_after_s = _retry_after_s(response.headers.get("Retry-After"))


def _retry_after_s(value: str | None) -> float | None:
    """Seconds to wait, from either form of the header (RFC 9110 §10.2.3); None for neither."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    # A date without a zone is in UTC, says the RFC; Python leaves it naive.
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _error_text(body: bytes) -> str:
    """The message of an error body: vLLM's has it in `error`, SGLang's at the top."""
    try:
        error = _ErrorBody.model_validate_json(body).error
        return (error or Failure.model_validate_json(body)).message or ""
    except ValidationError:
        return ""
