"""What is said to a policy server over HTTP: vLLM's OpenAI-compatible one, SGLang's, or another."""

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import httpx2
from pydantic import BaseModel, ValidationError

from prm.backends.http import Failure, ModelServer, ServedModel
from prm.chat import ChatTokenizer
from prm.errors import RungError, Unavailable, UnknownModel
from prm.types import Message
from search.generators.breaker import Breaker
from search.generators.events import event_data, is_event_stream
from search.generators.known_tokenizers import KnownTokenizers
from search.generators.openai_wire import Chunk, Detokenized, Prompt

# A server that has begun to write and says nothing for so long has stopped. The first words may
# take longer: a request may wait in its queue.
SILENCE_S = 30.0

logger = logging.getLogger(__name__)


class BrokenOff(Unavailable):
    """An answer stopped in the middle; what came is good, and the rest may be asked for."""


class OpenAIClient(ModelServer):
    """The connections to one policy server. `aclose` last, or use as an async context.

    Its failures are told to callers without its address; the log has that.

    >>> async with OpenAIClient("http://127.0.0.1:8000") as server:
    ...     print(list(await server.models()))
    """

    # Sampling leaves nothing behind: whatever failed before its answer began can be asked again.
    sent_again_statuses: ClassVar[frozenset[int]] = frozenset(
        {
            HTTPStatus.TOO_MANY_REQUESTS,
            HTTPStatus.INTERNAL_SERVER_ERROR,
            HTTPStatus.BAD_GATEWAY,
            HTTPStatus.SERVICE_UNAVAILABLE,
            HTTPStatus.GATEWAY_TIMEOUT,
        }
    )
    sent_again_after: ClassVar[tuple[type[Exception], ...]] = (
        *ModelServer.sent_again_after,
        httpx2.RemoteProtocolError,
        httpx2.ReadError,
        httpx2.WriteError,
    )

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        tokenizer: ChatTokenizer | None = None,
        tokenizers: Mapping[str, Path] = MappingProxyType({}),
        timeout_s: float = 120.0,
        silence_s: float = SILENCE_S,
        breaker: Breaker | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """See `ModelServer`. `silence_s` bounds the wait between two pieces of a text.

        With a `tokenizer`, that of the served model, texts become ids here and not by the server;
        so they do for models named in `tokenizers` whose tokenizer in that folder turns out to be
        the served one.
        """
        super().__init__(
            base_url,
            role="policy server",
            setting="policy_url",
            api_key=api_key,
            timeout_s=timeout_s,
            transport=transport,
        )
        self.label = "the policy server"
        self.breaker = breaker or Breaker()
        self.tokenizer = tokenizer
        self._known = KnownTokenizers(tokenizers)
        self._silence_s = silence_s
        self._served: Mapping[str, ServedModel] | None = None

    async def models(self) -> Mapping[str, ServedModel]:
        """What the server serves, by name. Raises Unavailable."""
        self._served = await super().models()
        return self._served

    async def served(self, model: str) -> ServedModel:
        """What the server says of a model, as of its last list; nothing of one that it lacks."""
        served = self._served if self._served is not None else await self.models()
        return served.get(model) or ServedModel(id=model)

    def context_limit(self, model: str) -> int | None:
        """Tokens of prompt and answer together, where the server's last list told them."""
        served = (self._served or {}).get(model)
        return served.max_model_len if served is not None else None

    async def tokenizer_of(self, model: str) -> ChatTokenizer | None:
        """The model's tokenizer where it is at hand; None: its server is asked for every text."""
        return self.tokenizer or await self._known.of(model, self)

    async def encode_prompt(self, model: str, messages: Sequence[Message]) -> Prompt:
        """Ids of the chat up to where the assistant starts to write, by the model's template."""
        tokenizer = await self.tokenizer_of(model)
        if tokenizer is None:
            return await self._look_up_chat(model, messages)
        ids = await asyncio.to_thread(tokenizer.encode_prompt, messages)
        limit = (await self.served(model)).max_model_len
        return Prompt(tokens=ids, max_model_len=limit or sys.maxsize)

    async def encode_response(self, model: str, response: str) -> tuple[int, ...]:
        """Ids of what the assistant wrote."""
        if tokenizer := await self.tokenizer_of(model):
            return tokenizer.encode_response(response).ids
        return await self.look_up_response(model, response)

    async def decode(self, model: str, ids: Sequence[int]) -> str:
        """The text of these ids."""
        if tokenizer := await self.tokenizer_of(model):
            return tokenizer.decode(ids)
        return await self.look_up_text(model, ids)

    async def look_up_prompt(self, model: str, messages: Sequence[Message]) -> tuple[int, ...]:
        """See `TokenRoutes`."""
        return (await self._look_up_chat(model, messages)).tokens

    async def look_up_response(self, model: str, response: str) -> tuple[int, ...]:
        """See `TokenRoutes`."""
        return (await self._tokenize(model, {"prompt": response})).tokens

    async def look_up_text(self, model: str, ids: Sequence[int]) -> str:
        """See `TokenRoutes`."""
        body = {"model": model, "tokens": ids}
        return (await self.call("POST", "/detokenize", body, Detokenized)).text

    async def complete_whole(self, body: Mapping[str, Any]) -> Chunk:
        """A completion that is not streamed. Left early, the writing ends there too.

        Raises BrokenOff when the connection breaks while it is written.
        """
        try:
            async with self.response("POST", "/v1/completions", body) as response:
                return self._chunk(await self.body(response))
        except Unavailable as error:
            if isinstance(error.__cause__, httpx2.ReadError | httpx2.RemoteProtocolError):
                raise BrokenOff(str(error)) from error
            raise

    async def complete(self, body: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        """The events of a streamed completion; closing it early ends the writing there too.

        Raises BrokenOff when the stream stops before its end.
        """
        async with self.response("POST", "/v1/completions", body) as response:
            if not is_event_stream(response):
                raise await self._not_a_stream(response)
            has_begun = False
            async with aclosing(event_data(response, self.label)) as events:
                while True:
                    try:
                        async with asyncio.timeout(self._silence_s if has_begun else None):
                            data = await anext(events, None)
                    except TimeoutError:
                        raise BrokenOff(f"{self.label} stopped in the middle of a text") from None
                    except httpx2.TransportError as error:
                        if isinstance(error, httpx2.TimeoutException) and not has_begun:
                            raise
                        raise BrokenOff(
                            f"{self.label} broke off ({type(error).__name__})"
                        ) from error
                    if data is None or data == "[DONE]":
                        return
                    has_begun = True
                    yield self._chunk(data)

    @asynccontextmanager
    async def response(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> AsyncIterator[httpx2.Response]:
        """See `ModelServer.response`; through the breaker."""
        try:
            with self.breaker.guard(self.label) as answered:
                async with super().response(method, path, body) as response:
                    answered()
                    yield response
        except Unavailable as error:
            self._known.forget()
            logger.warning("policy server at %s: %s", self.address, error)
            raise

    def refusal(self, status: int, message: str) -> RungError:
        """See `ModelServer.refusal`. A policy is named by the caller."""
        if status == HTTPStatus.NOT_FOUND and "model" in message:
            return UnknownModel(f"{self.label}: {self.public(message)}", param="policy")
        return super().refusal(status, message)

    def _chunk(self, data: str | bytes) -> Chunk:
        chunk = Chunk.model_validate_json(data)
        if chunk.error is not None:
            refusal = self.refusal(chunk.error.status, chunk.error.message or "")
            if chunk.error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise BrokenOff(str(refusal))
            raise refusal
        return chunk

    async def _not_a_stream(self, response: httpx2.Response) -> RungError:
        """What to make of a good status over something else than events."""
        try:
            failure = _Failed.model_validate_json(await self.body(response)).error
        except ValidationError:
            return Unavailable(f"{self.label} does not stream its answer")
        return self.refusal(failure.status, failure.message or "")

    async def _look_up_chat(self, model: str, messages: Sequence[Message]) -> Prompt:
        body = {
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "add_generation_prompt": True,
        }
        return await self._tokenize(model, body)

    async def _tokenize(self, model: str, body: Mapping[str, Any]) -> Prompt:
        body = {"model": model, "add_special_tokens": False, **body}
        return await self.call("POST", "/tokenize", body, Prompt)


class _Failed(BaseModel):
    error: Failure
