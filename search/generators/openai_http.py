"""Writes continuations through an OpenAI-compatible policy server: vLLM, or SGLang.

    POST /tokenize        a chat up to the assistant's turn → token ids, once per chat
    POST /v1/completions  those ids and the prefix's ids → a stream of new text and new ids

Ids go out and ids come back, so a continuation starts exactly where its prefix ended, and nothing
is tokenised twice. `/v1/chat/completions` with `continue_final_message` cannot promise that: under
a chat template that trims messages (Llama 3's does), transformers strips the white space that the
prefix ends in, the step separator with it (`utils/chat_template_utils.py`, after "trailing spacing
that was trimmed").

Wants with the same prefix share a request: `n` of them, seeded by the first one's seed. vLLM adds
a choice's index to it, so the same wants give the same texts, up to the last bits of the logits,
which depend on what else that server is running.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from prm.errors import InvalidInput, Unavailable
from prm.types import Message
from search.generator import EndedBy, GenerateParams, Want, Written
from search.generators.openai_client import Choice, OpenAIClient, Prompt
from search.types import Prefix

# An event per token costs this process 20 µs a token, one per 8 tokens 4 µs (64 at once). vLLM
# sends the last tokens of a text at once, so only a deadline can lose some: at most 7 a text.
STREAM_INTERVAL = 8
# Below it vLLM decodes greedily, and then refuses n > 1 (`_SAMPLING_EPS` in sampling_params.py).
GREEDY_BELOW = 1e-5
# Any server's seed has at least 32 bits, signed.
SEED_RANGE = 1 << 31


class OpenAIServer(OpenAIClient):
    """A policy server whose models write the steps. `aclose` last, or use as an async context.

    >>> async with OpenAIServer("http://127.0.0.1:8000") as server:
    ...     generator = server.generator(next(iter(await server.models())))
    """

    def generator(self, model: str) -> "OpenAIGenerator":
        """A generator for one of the server's models."""
        return OpenAIGenerator(self, model)


class OpenAIGenerator:
    """A model of a policy server. See `search.generator.Generator`."""

    # The server does not say which weights stand behind a name.
    version = "external"

    def __init__(self, server: OpenAIClient, model: str) -> None:
        self.name = model
        self._server = server
        self._last_chat: tuple[tuple[Message, ...], Prompt] | None = None

    async def generate(
        self, messages: Sequence[Message], wants: Sequence[Want], params: GenerateParams
    ) -> AsyncGenerator[Written]:
        """See `Generator.generate`."""
        deadline_s = None
        if params.seconds is not None:
            deadline_s = asyncio.get_running_loop().time() + params.seconds
        try:
            async with asyncio.timeout_at(deadline_s):
                chat = await self._chat(tuple(messages))
        except TimeoutError:
            raise Unavailable(f"{self.name}: the time was up before its server answered") from None
        written: asyncio.Queue[Written | Exception] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._write(chat, group, params, deadline_s, written))
            for group in _groups(wants, params)
        ]
        try:
            for _ in wants:
                piece = await written.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _chat(self, messages: tuple[Message, ...]) -> Prompt:
        """The chat's ids, which every round of a search asks for again."""
        if self._last_chat is None or self._last_chat[0] != messages:
            self._last_chat = messages, await self._server.encode_prompt(self.name, messages)
        chat = self._last_chat[1]
        if len(chat.tokens) >= chat.max_model_len:
            raise InvalidInput(
                f"the problem is {len(chat.tokens)} tokens long, and {self.name} reads and writes "
                f"at most {chat.max_model_len} together; shorten it",
                param="problem",
            )
        return chat

    async def _write(
        self,
        chat: Prompt,
        wants: Sequence[Want],
        params: GenerateParams,
        deadline_s: float | None,
        written: "asyncio.Queue[Written | Exception]",
    ) -> None:
        """Continue one prefix once per want: exactly one `Written` each, or an exception."""
        drafts = [_Draft(want=want, prompt_tokens=len(chat.tokens)) for want in wants]
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._continue(chat, drafts, params, written)
        except TimeoutError:
            for draft in drafts:
                if not draft.is_written:
                    written.put_nowait(draft.end("deadline"))
        # Not swallowed: `generate` waits for it and raises it.
        except Exception as error:
            written.put_nowait(error)

    async def _continue(
        self,
        chat: Prompt,
        drafts: Sequence["_Draft"],
        params: GenerateParams,
        written: "asyncio.Queue[Written | Exception]",
    ) -> None:
        """One request for all drafts."""
        prefix = drafts[0].want.prefix
        prefix_ids = prefix.ids
        if prefix.text and not prefix_ids:
            prefix_ids = (await self._server.encode_response(self.name, prefix.text)).tokens
        for draft in drafts:
            draft.prefix_ids = prefix_ids
        prompt = chat.tokens + prefix_ids
        if len(prompt) >= chat.max_model_len:
            for draft in drafts:
                written.put_nowait(draft.end("length"))
            return
        body = {
            "model": self.name,
            "prompt": prompt,
            "n": len(drafts),
            "seed": drafts[0].want.seed % SEED_RANGE,
            "max_tokens": drafts[0].want.limit(params),
            "stop": sorted({*params.stop, *params.keep_stop}),
            **_sampling(params),
            **_ANSWER_SHAPE,
        }
        async with aclosing(self._server.complete(body)) as choices:
            async for choice in choices:
                draft = drafts[choice.index]
                draft.text += choice.text
                draft.ids += choice.token_ids
                if choice.finish_reason is not None:
                    written.put_nowait(await self._finish(draft, choice, params))
        if not all(draft.is_written for draft in drafts):
            raise Unavailable(f"{self._server.label} ended its answer early")

    async def _finish(self, draft: "_Draft", last: Choice, params: GenerateParams) -> Written:
        """The draft, ended for the reason that its last piece gives."""
        stop = last.stop_reason
        if last.finish_reason == "length":
            return draft.end("length")
        if last.finish_reason != "stop":
            raise Unavailable(f"{self._server.label} gave up a text ({last.finish_reason!r:.40})")
        if not isinstance(stop, str):
            return draft.end("eos")
        before, _, _ = draft.text.partition(stop)
        if stop not in params.keep_stop or stop in params.stop:
            return draft.end("stop", text=before, are_ids_exact=False)
        # A stop string may end inside a token: then the text was cut, and the ids say too much.
        text = before + stop
        is_whole = await self._server.decode(self.name, draft.ids) == text
        return draft.end("separator", text=text, are_ids_exact=is_whole)


@dataclass(slots=True, kw_only=True, eq=False)
class _Draft:
    """A text being written."""

    want: Want
    prompt_tokens: int
    prefix_ids: tuple[int, ...] = ()
    text: str = ""
    ids: list[int] = field(default_factory=list)
    is_written: bool = False

    def end(
        self, ended_by: EndedBy, *, text: str | None = None, are_ids_exact: bool = True
    ) -> Written:
        """The continuation, with `text` in place of what came. Ids are left out if they differ."""
        self.is_written = True
        return Written(
            number=self.want.number,
            prefix=Prefix(
                text=self.want.prefix.text + (self.text if text is None else text),
                ids=self.prefix_ids + tuple(self.ids) if are_ids_exact else (),
            ),
            tokens=len(self.ids),
            prompt_tokens=self.prompt_tokens,
            ended_by=ended_by,
        )


def _groups(wants: Sequence[Want], params: GenerateParams) -> list[list[Want]]:
    """Wants that one request can answer: same prefix and limit, or each alone when greedy."""
    if params.temperature < GREEDY_BELOW:
        return [[want] for want in wants]
    alike: dict[tuple[Prefix, int], list[Want]] = {}
    for want in wants:
        alike.setdefault((want.prefix, want.limit(params)), []).append(want)
    return list(alike.values())


def _sampling(params: GenerateParams) -> dict[str, float]:
    """What is asked for and nothing else: a model's `generation_config.json` would add its own."""
    return {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


_ANSWER_SHAPE = {
    "stream": True,
    "stream_interval": STREAM_INTERVAL,
    "return_token_ids": True,
    "include_stop_str_in_output": True,
    "no_stop_trim": True,
}
