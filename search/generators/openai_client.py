"""What is said to a policy server over HTTP: vLLM's OpenAI-compatible one, or SGLang's.

SGLang's names for the same things (`matched_stop`, `text`, a flat error body) are those of its
source in 2026; vLLM 0.32 is what the tests run.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import httpx2
from pydantic import AliasChoices, BaseModel, Field

from prm.backends.http import Failure, ModelServer
from prm.errors import RungError, UnknownModel
from prm.types import Message


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


class OpenAIClient(ModelServer):
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
        """See `ModelServer`."""
        super().__init__(
            base_url,
            role="policy server",
            setting="policy_url",
            api_key=api_key,
            timeout_s=timeout_s,
            transport=transport,
        )

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
        return (await self.call("POST", "/detokenize", body, _Detokenized)).text

    async def complete(self, body: Mapping[str, Any]) -> AsyncGenerator[Choice]:
        """The pieces of a streamed completion; closing it early ends the writing there too."""
        async with self.response("POST", "/v1/completions", body) as response:
            # Not `aiter_lines`: it also cuts at U+2028 and U+0085, which JSON leaves unescaped.
            async for event in httpx2.EventSource(response):
                if event.data == "[DONE]":
                    return
                chunk = _Chunk.model_validate_json(event.data)
                if chunk.error is not None:
                    raise self.refusal(chunk.error.status, chunk.error.message or "")
                for choice in chunk.choices:
                    yield choice

    def refusal(self, status: int, message: str) -> RungError:
        """See `ModelServer.refusal`. A policy is named by the caller."""
        if status == HTTPStatus.NOT_FOUND and "model" in message:
            return UnknownModel(f"{self.label}: {self.public(message)}", param="policy")
        return super().refusal(status, message)

    async def _tokenize(self, model: str, body: Mapping[str, Any]) -> Prompt:
        body = {"model": model, "add_special_tokens": False, **body}
        return await self.call("POST", "/tokenize", body, Prompt)


class _Detokenized(BaseModel):
    text: str = Field(validation_alias=AliasChoices("prompt", "text"))


class _Chunk(BaseModel):
    choices: list[Choice] = []
    error: Failure | None = None
