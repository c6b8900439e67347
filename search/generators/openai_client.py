"""The HTTP that is spoken with a policy server: vLLM's OpenAI-compatible one, or SGLang's.

SGLang's names for the same things (`matched_stop`, `text`, a flat error body) are those of its
source in 2026; vLLM 0.32 is what the tests run.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any, Self, TypeVar

import httpx2
import stamina
from pydantic import AliasChoices, BaseModel, Field, ValidationError

from prm.errors import InvalidInput, RungError, Unavailable, UnknownModel
from prm.types import Message

CONNECT_TIMEOUT_S = 5.0
ATTEMPTS = 3
# uvicorn, and so vLLM, closes an idle connection after 5 s; ours must go first.
KEEP_ALIVE_S = 4.0
LONGEST_MESSAGE = 300

_Answer = TypeVar("_Answer", bound=BaseModel)


class ServedModel(BaseModel):
    """A model of the policy server. `max_model_len`, where told, bounds prompt plus answer."""

    id: str
    max_model_len: int | None = None


class Prompt(BaseModel):
    """Token ids of a text, and how many the model reads and writes together."""

    tokens: tuple[int, ...]
    max_model_len: int


class Choice(BaseModel):
    """A piece of the text number `index` of a request; `finish_reason` is set in the last one."""

    index: int
    text: str = ""
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    stop_reason: int | str | None = Field(
        default=None, validation_alias=AliasChoices("stop_reason", "matched_stop")
    )


class OpenAIClient:
    """The connections to one policy server. `aclose` last, or use as an async context.

    >>> async with OpenAIClient("http://127.0.0.1:8000") as server:
    ...     print(list(await server.models()))
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """`base_url` with or without its `/v1`. `timeout_s` bounds any wait for the next bytes."""
        url = httpx2.URL(base_url.rstrip("/").removesuffix("/v1"))
        if url.scheme not in ("http", "https") or not url.host:
            raise InvalidInput("a policy server's URL is http://HOST:PORT", param="policy_url")
        self.address = f"{url.host}:{url.port}" if url.port else url.host
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
        """Close the connections; what is being written for us ends."""
        await self._client.aclose()

    async def models(self) -> Mapping[str, ServedModel]:
        """What the server serves, by name. Raises Unavailable."""
        answer = await self._call("GET", "/v1/models", None, _ModelList)
        return {model.id: model for model in answer.data}

    async def encode_prompt(self, model: str, messages: Sequence[Message]) -> Prompt:
        """Ids of the chat up to where the assistant starts to write, by the server's template."""
        body = {
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "add_generation_prompt": True,
        }
        return await self._tokenize(model, body)

    async def encode_response(self, model: str, response: str) -> Prompt:
        """Ids of what the assistant wrote."""
        return await self._tokenize(model, {"prompt": response})

    async def decode(self, model: str, ids: Sequence[int]) -> str:
        """The text of these ids."""
        body = {"model": model, "tokens": ids}
        return (await self._call("POST", "/detokenize", body, _Detokenized)).text

    async def complete(self, body: Mapping[str, Any]) -> AsyncGenerator[Choice]:
        """The pieces of a streamed completion; closing it early ends the writing there too."""
        async with self._response("POST", "/v1/completions", body) as response:
            # Not `aiter_lines`: it also cuts at U+2028 and U+0085, which JSON leaves unescaped.
            async for event in httpx2.EventSource(response):
                if event.data == "[DONE]":
                    return
                chunk = _Chunk.model_validate_json(event.data)
                if chunk.error is not None:
                    raise self._refusal(chunk.error.status, chunk.error.message or "")
                for choice in chunk.choices:
                    yield choice

    async def _tokenize(self, model: str, body: Mapping[str, Any]) -> Prompt:
        body = {"model": model, "add_special_tokens": False, **body}
        return await self._call("POST", "/tokenize", body, Prompt)

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, answer: type[_Answer]
    ) -> _Answer:
        async with self._response(method, path, body) as response:
            return answer.model_validate_json(await response.aread())

    @asynccontextmanager
    async def _response(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> AsyncIterator[httpx2.Response]:
        """A good response, its body not yet read. Every failure until its end becomes ours."""
        with self._failures_named():
            response = await self._send(method, path, body)
            try:
                if response.is_error:
                    raise self._refusal(response.status_code, _error_text(await response.aread()))
                yield response
            finally:
                await response.aclose()

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> httpx2.Response:
        """Try a few times to be let in; nothing has been written for us before that."""
        async for attempt in stamina.retry_context(
            on=(httpx2.ConnectError, httpx2.ConnectTimeout, _NotNow),
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
        server = f"the policy server at {self.address}"
        try:
            yield
        except _NotNow as error:
            raise Unavailable(f"{server} takes no requests now (status {error})") from None
        except httpx2.TimeoutException as error:
            raise Unavailable(f"{server} did not answer in time") from error
        except httpx2.TransportError as error:
            raise Unavailable(f"{server} does not answer ({type(error).__name__})") from error
        except ValidationError as error:
            raise Unavailable(
                f"{server} answers in another shape than vLLM's: "
                f"{error.error_count()} errors in {error.title}"
            ) from error

    def _refusal(self, status: int, message: str) -> RungError:
        """Our error for an error status: the caller's mistake, or the operator's."""
        server = f"the policy server at {self.address}"
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return Unavailable(f"{server} refuses this server's key (status {status})")
        if status == HTTPStatus.NOT_FOUND and "model" in message:
            return UnknownModel(f"{server}: {self._public(message)}", param="policy")
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            return Unavailable(f"{server} lacks a route that vLLM has (status {status})")
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return InvalidInput(f"{server}: {self._public(message)}")
        return Unavailable(f"{server} failed (status {status})")

    def _public(self, message: str) -> str:
        """A message of the policy server without our key and without paths of its machine."""
        if self._api_key:
            message = message.replace(self._api_key, "…")
        message = re.sub(r"(?<![\w`])(?:/[\w.@+-]+){2,}/?", "…", " ".join(message.split()))
        return message if len(message) <= LONGEST_MESSAGE else message[:LONGEST_MESSAGE] + "…"


class _ModelList(BaseModel):
    data: list[ServedModel]


class _Detokenized(BaseModel):
    text: str = Field(validation_alias=AliasChoices("prompt", "text"))


class _Failure(BaseModel):
    message: str | None = None
    code: int | str | None = None

    @property
    def status(self) -> int:
        return self.code if isinstance(self.code, int) else HTTPStatus.INTERNAL_SERVER_ERROR


class _Chunk(BaseModel):
    choices: list[Choice] = []
    error: _Failure | None = None


class _NotNow(Exception):
    """The server is up and takes no requests at the moment: worth another try."""


def _error_text(body: bytes) -> str:
    """The message of an error body: vLLM's has it in `error`, SGLang's at the top."""
    try:
        error = _Chunk.model_validate_json(body).error
        return (error or _Failure.model_validate_json(body)).message or ""
    except ValidationError:
        return ""
