"""Who runs a generative PRM's model: the engine process, or a vLLM server. See `VerdictModel`."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing

from pydantic import BaseModel

from prm.backends.vllm import ScoringServer, VllmBackend, VllmModel, VllmReply
from prm.engine.client import EngineClient
from prm.engine.messages import FinishReason, ReadReply, SampleRequest
from prm.errors import Unavailable
from prm.families.base import Read
from prm.tasks import all_or_none
from prm.verification import Ask, EndedBy, Style, Written

# A verification of 8,000 tokens on a busy server; nothing is streamed meanwhile.
WRITING_TIMEOUT_S = 900.0
# Enough for a server to fill its batches; what it cannot yet run would only lie in its memory.
REQUESTS_AT_ONCE = 64

# A separator and a deadline are never asked for.
_ENDED_BY: Mapping[FinishReason, EndedBy] = {
    "stop": "stop",
    "eos": "eos",
    "length": "length",
    "context": "length",
}


class EngineVerdicts:
    """A version (by its key) that the engine has loaded to read and to write."""

    def __init__(self, engine: EngineClient, key: str) -> None:
        self._engine = engine
        self._key = key

    async def read(self, reads: Sequence[Read]) -> ReadReply:
        """See `VerdictModel.read`."""
        return await self._engine.read(reads)

    async def write(self, asks: Sequence[Ask], style: Style) -> list[Written]:
        """See `VerdictModel.write`."""
        request = SampleRequest(
            id=0,
            model=self._key,
            numbers=tuple(range(len(asks))),
            prompts=tuple(ask.ids for ask in asks),
            seeds=tuple(ask.seed for ask in asks),
            max_tokens=tuple(ask.max_tokens for ask in asks),
            temperature=style.temperature,
            top_p=style.top_p,
            top_k=style.top_k,
            stop=style.stop,
            keep_stop=(),
            seconds=None,
        )
        written: dict[int, Written] = {}
        async with aclosing(self._engine.sample(request)) as replies:
            async for reply in replies:
                written[reply.number] = Written(
                    text=reply.text,
                    tokens=len(reply.ids),
                    ended_by=_ENDED_BY[reply.finish_reason],
                )
        return [written[number] for number in range(len(asks))]


class VllmVerdicts:
    """A version that a vLLM server runs: `/v1/completions` writes, `VllmBackend` reads."""

    def __init__(self, backend: VllmBackend, model: VllmModel) -> None:
        """`backend` reads `model` under the version's key. Connects to nothing yet."""
        self._backend = backend
        self._model = model
        self._server = ScoringServer(model, WRITING_TIMEOUT_S)
        self._permits = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def aclose(self) -> None:
        """Close the connections that write; the backend is its owner's."""
        await self._server.aclose()

    async def read(self, reads: Sequence[Read]) -> VllmReply:
        """See `VerdictModel.read`."""
        return await self._backend.read(reads)

    async def write(self, asks: Sequence[Ask], style: Style) -> list[Written]:
        """See `VerdictModel.write`. A request each, as each has a seed of its own."""
        return await all_or_none([self._write(ask, style) for ask in asks])

    async def _write(self, ask: Ask, style: Style) -> Written:
        body = {
            "model": self._model.name,
            "prompt": ask.ids,
            "seed": ask.seed,
            "max_tokens": ask.max_tokens,
            "temperature": style.temperature,
            "top_p": style.top_p,
            "top_k": style.top_k or -1,
            "stop": style.stop,
            # A model's `generation_config.json` would set these, which the engine does not have.
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        async with self._permits:
            answer = await self._server.call("POST", "/v1/completions", body, _Completion)
        if len(answer.choices) != 1 or answer.choices[0].finish_reason not in ("stop", "length"):
            raise Unavailable(f"{self._server.label} gave up a text")
        choice = answer.choices[0]
        ended: EndedBy = "stop" if isinstance(choice.stop_reason, str) else "eos"
        return Written(
            text=choice.text,
            tokens=answer.usage.completion_tokens,
            ended_by="length" if choice.finish_reason == "length" else ended,
        )


class _Choice(BaseModel):
    text: str
    finish_reason: str | None
    stop_reason: int | str | None = None


class _Usage(BaseModel):
    completion_tokens: int


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: _Usage
