"""Scoring on vLLM servers: `Scorer → VllmBackend.read → HTTP → vLLM`.

    backend = VllmBackend({"prm@1": VllmModel(url="http://127.0.0.1:8000", name="prm")})
    reply = await backend.read(reads)

For models that one engine process cannot hold or a cluster already serves. What is asked and which
flags a server needs stands in `prm/backends/vllm_wire.py`. vLLM reads no prefix cache for log-probs
of a prompt nor for token-wise pooling, so every read there is computed whole; the engine's is not.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple, TypeVar

import httpx2

from prm.backends.http import ModelServer, ServedModel
from prm.backends.vllm_wire import Prompt, Question, WrongAnswer, question
from prm.errors import InvalidInput, RungError, Unavailable
from prm.families.base import Read, ReadOutput
from prm.tasks import all_or_none

# An answer has about 70 bytes of JSON per token of a log-prob read: 0.6 MB, parsed in some 20 ms,
# during which this process answers nobody else.
TOKENS_PER_REQUEST = 8_192
# vLLM takes 1,024 prompts in a request by default (VLLM_MAX_COMPLETION_PROMPTS).
PROMPTS_PER_REQUEST = 256
# Enough for a server to fill its batches; what it cannot yet run would only lie in its memory.
REQUESTS_AT_ONCE = 8

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmModel:
    """Where a model is served: the server's URL, its name there, and the server's key."""

    url: str
    name: str
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmReply:
    """One output per read. `queue_ms` is the wait until the first request was let out."""

    outputs: tuple[ReadOutput, ...]
    queue_ms: float
    inference_ms: float


class VllmBackend:
    """Reads models, by their keys (`name@version`), on vLLM servers. `aclose` last.

    Requests to one server are bounded in number and size; those of a `read` that failed or whose
    caller left are closed, upon which vLLM drops them.
    """

    def __init__(self, models: Mapping[str, VllmModel], *, timeout_s: float = 120.0) -> None:
        """Connects to nothing yet. Raises InvalidInput for what is no URL."""
        self._servers = {
            (model.url, model.api_key): _Reading(model, timeout_s) for model in models.values()
        }
        self._models = {
            key: (self._servers[model.url, model.api_key], model.name)
            for key, model in models.items()
        }

    async def aclose(self) -> None:
        """Close the connections."""
        for server in self._servers.values():
            await server.aclose()

    async def read(self, reads: Sequence[Read]) -> VllmReply:
        """One output per read, float32, nothing cached.

        Raises Unavailable naming the server that does not answer, or not with what was asked;
        InvalidInput for an item that is longer than the server's `--max-model-len` allows.
        """
        started = time.perf_counter()
        values: list[list[list[float]]] = [[] for _ in reads]
        first_out = asyncio.get_running_loop().create_future()
        await all_or_none(
            [
                self._ask(model, asked, batch, values, first_out)
                for (model, asked), pieces in _grouped(reads, values).items()
                for batch in _batches(pieces)
            ]
        )
        ended = time.perf_counter()
        let_out = first_out.result() if first_out.done() else ended
        return VllmReply(
            outputs=tuple(
                ReadOutput(values=tuple(v for piece in found for v in piece)) for found in values
            ),
            queue_ms=1e3 * (let_out - started),
            inference_ms=1e3 * (ended - let_out),
        )

    async def _ask(
        self,
        model: str,
        asked: Question,
        batch: "list[_Piece]",
        values: list[list[list[float]]],
        first_out: "asyncio.Future[float]",
    ) -> None:
        server, name = self._models[model]
        async with server.permits:
            if not first_out.done():
                first_out.set_result(time.perf_counter())
            found = await server.ask(name, asked, [piece.prompt for piece in batch])
        for piece, numbers in zip(batch, found, strict=True):
            values[piece.read][piece.place] = numbers


class ScoringServer(ModelServer):
    """A vLLM server that scores. No caller chose what is asked of it: the operator did."""

    def __init__(self, model: VllmModel, timeout_s: float) -> None:
        super().__init__(
            model.url,
            role="vLLM server",
            setting="scoring_urls",
            api_key=model.api_key,
            timeout_s=timeout_s,
        )

    def refusal(self, status: int, message: str) -> RungError:
        """See `ModelServer.refusal`. What would be the caller's mistake is the operator's here."""
        refused = super().refusal(status, message)
        if isinstance(refused, InvalidInput):
            return Unavailable(f"{self.label} refuses (status {status}): {self.public(message)}")
        return refused


class _Reading(ScoringServer):
    """One server that reads, and how many requests it gets at once."""

    # Reading twice changes nothing, and a busy server may close a connection that we thought idle.
    sent_again_after = (
        *ScoringServer.sent_again_after,
        httpx2.ReadError,
        httpx2.WriteError,
        httpx2.RemoteProtocolError,
    )

    def __init__(self, model: VllmModel, timeout_s: float) -> None:
        super().__init__(model, timeout_s)
        self.permits = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._served: Mapping[str, ServedModel] | None = None

    async def ask(self, name: str, asked: Question, prompts: list[Prompt]) -> list[list[float]]:
        """Values of each prompt. Raises Unavailable, InvalidInput."""
        await self._check(name, asked, prompts)
        try:
            async with self.response("POST", asked.route, asked.body(name, prompts)) as response:
                return asked.values(await response.aread(), prompts)
        except WrongAnswer as error:
            raise Unavailable(f"{self.label} returned {error}") from error

    async def _check(self, name: str, asked: Question, prompts: list[Prompt]) -> None:
        """Whether the server has the model, and room for these prompts.

        vLLM would refuse them too, in words for its own users ("max_tokens must be at least 1").
        """
        if self._served is None:
            self._served = await self.models()
        if name not in self._served:
            served, self._served = ", ".join(self._served), None
            raise Unavailable(f"{self.label} does not serve {name!r}; it serves {served}")
        limit = self._served[name].max_model_len
        longest = max(len(prompt.ids) for prompt in prompts)
        if limit is not None and longest + asked.written > limit:
            raise InvalidInput(
                f"an item is {longest} tokens long, and {self.label} reads at most "
                f"{limit - asked.written} of {name}; send fewer or shorter steps"
            )

    def refusal(self, status: int, message: str) -> RungError:
        """See `ModelServer.refusal`. The server may have been started anew with other models."""
        self._served = None
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            return Unavailable(
                f"{self.label} has no such model or route (status {status}): a model that is read "
                "by its head needs a server that pools, any other one that generates"
            )
        return super().refusal(status, message)


class _Piece(NamedTuple):
    """A prompt, and the read and the place among that read's prompts that it belongs to."""

    read: int
    place: int
    prompt: Prompt


def _grouped(
    reads: Sequence[Read], values: list[list[list[float]]]
) -> dict[tuple[str, Question], list[_Piece]]:
    """What is asked, by model and question; makes room in `values`."""
    groups: dict[tuple[str, Question], list[_Piece]] = {}
    for number, read in enumerate(reads):
        asked = question(read)
        prompts = asked.prompts(read)
        values[number] = [[] for _ in prompts]
        groups.setdefault((read.model, asked), []).extend(
            _Piece(number, place, prompt) for place, prompt in enumerate(prompts)
        )
    return groups


def _batches(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Requests of bounded size; a prompt that is larger than the bound gets one of its own."""
    batch: list[_Piece] = []
    tokens = 0
    for piece in pieces:
        length = len(piece.prompt.ids)
        if batch and (tokens + length > TOKENS_PER_REQUEST or len(batch) == PROMPTS_PER_REQUEST):
            yield batch
            batch, tokens = [], 0
        batch.append(piece)
        tokens += length
    if batch:
        yield batch
