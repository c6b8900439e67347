"""Writes continuations by text, through a server that takes no token ids or tells none.

The chat is laid out here, by the policy's own template and tokenizer (`RUNG_POLICY_TOKENIZER`), and
the prefix stands behind it, so the prompt of a continuation is the text so far, to the character.
What is lost against ids: where a prefix ends, the server's tokenizer may join what were two tokens.

Such servers cut a stop string off and do not say which one it was, so a step's end would look like
the end of the turn. Therefore none is sent: the text is read as it comes, and the request closed
where a stop string has appeared. A want is a request of its own, with its own seed.

Tokens are counted by the server where it tells its usage, and else by the policy's tokenizer.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

import stamina

from prm.chat import ChatTokenizer
from prm.errors import Unavailable
from prm.types import Message
from search.generator import EndedBy, GenerateParams, Want, Written
from search.generators.calls import (
    RESUMPTIONS,
    SPARE_EVENTS,
    check_length,
    deadline_of,
    of_policy,
)
from search.generators.drafts import Draft, Put, as_they_end, find_stop, is_separator
from search.generators.openai_client import BrokenOff, OpenAIClient
from search.generators.openai_wire import Chunk, Usage, sampling

# What a decoder puts for half a character.
HALF = "\ufffd"

logger = logging.getLogger(__name__)


class TextGenerator:
    """A model of a policy server that is spoken to in text. See `search.generator.Generator`."""

    version = "external"

    def __init__(self, server: OpenAIClient, model: str, tokenizer: ChatTokenizer) -> None:
        self.name = model
        self._server = server
        self._tokenizer = tokenizer
        self._has_compared = False

    @property
    def context_limit(self) -> int | None:
        """The most tokens of prompt and response together, where the server told them."""
        return self._server.context_limit(self.name)

    async def generate(
        self, messages: Sequence[Message], wants: Sequence[Want], params: GenerateParams
    ) -> AsyncGenerator[Written]:
        """See `Generator.generate`. The `Written` hold no ids."""
        deadline_s = deadline_of(params)
        try:
            async with asyncio.timeout_at(deadline_s):
                limit = (await self._server.served(self.name)).max_model_len or sys.maxsize
        except TimeoutError:
            raise Unavailable(f"{self.name}: the time was up before its server answered") from None
        except Unavailable as error:
            raise of_policy(self.name, error) from error
        check_length(self.name, self._tokenizer.least_tokens(*(m.content for m in messages)), limit)
        ids = await asyncio.to_thread(self._tokenizer.encode_prompt, messages)
        check_length(self.name, len(ids), limit)
        chat = self._tokenizer.render(messages, add_generation_prompt=True)
        drafts = [
            Draft(want=want, seed=want.seed, limit=want.limit(params), prompt_tokens=len(ids))
            for want in wants
        ]
        jobs = [partial(self._write, chat, draft, limit, params, deadline_s) for draft in drafts]
        async with aclosing(as_they_end(len(wants), jobs)) as pieces:
            async for piece in pieces:
                yield piece

    async def _write(
        self,
        chat: str,
        draft: Draft,
        context_limit: int,
        params: GenerateParams,
        deadline_s: float | None,
        put: Put,
    ) -> None:
        """Exactly one `Written`, or an exception."""
        # Spelt out in a text prompt, a control token would be one.
        self._tokenizer.refuse_control_tokens(draft.want.prefix.text, param="prefix")
        prompt = chat + draft.want.prefix.text
        draft.limit = min(draft.limit, context_limit - len(self._tokenizer.encode_markup(prompt)))
        if draft.limit < 1:
            put(draft.end("length", ids_known=False))
            return
        try:
            async with asyncio.timeout_at(deadline_s):
                put(await self._write_through(prompt, draft, params))
        except TimeoutError:
            put(draft.end("deadline", text=draft.text.rstrip(HALF), ids_known=False))
        except Unavailable as error:
            raise of_policy(self.name, error) from error

    async def _write_through(self, prompt: str, draft: Draft, params: GenerateParams) -> Written:
        """The whole text, taken up again where an answer breaks off."""
        async for attempt in stamina.retry_context(
            on=BrokenOff, attempts=1 + RESUMPTIONS, wait_initial=0.2, wait_max=2.0
        ):
            with attempt:
                draft.text = draft.text.rstrip(HALF)
                if draft.tokens >= draft.limit:
                    return draft.end("length", ids_known=False)
                return await self._ask(prompt, draft, params)
        raise AssertionError("the last attempt returns or raises")

    async def _ask(self, prompt: str, draft: Draft, params: GenerateParams) -> Written:
        """One request, from where the draft stands to its end."""
        label = self._server.label
        before, text_before = draft.tokens, draft.text
        left = draft.limit - before
        body = {
            "model": self.name,
            "prompt": prompt + draft.text,
            "seed": draft.seed_here,
            "max_tokens": left,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            # The template has written those that there are.
            "add_special_tokens": False,
            **sampling(params),
        }
        events_left = left + SPARE_EVENTS
        found, finish, usage = None, None, None
        try:
            async with aclosing(self._server.complete(body)) as chunks:
                async for chunk in chunks:
                    usage = chunk.usage or usage
                    if finish is None:
                        finish, found = self._take(draft, chunk, params)
                    if found is not None:
                        break
                    events_left -= 1
                    if not events_left or self._tokenizer.least_tokens(draft.text) > draft.limit:
                        raise Unavailable(f"{label} writes more than it was asked for")
        finally:
            draft.tokens = before + self._count(draft.text[len(text_before) :], usage)
            self._compare(prompt + text_before, usage)
        if found is not None:
            return _stopped(draft, *found, params)
        if finish in ("stop", "length"):
            ended_by: EndedBy = "eos" if finish == "stop" else "length"
            return draft.end(ended_by, ids_known=False)
        if finish is None:
            raise BrokenOff(f"{label} ended its answer early")
        raise Unavailable(f"{label} gave up a text ({finish!r:.40})")

    def _take(
        self, draft: Draft, chunk: Chunk, params: GenerateParams
    ) -> tuple[str | None, tuple[int, str] | None]:
        """Add a piece; how the text ended by the server, and the stop string that is in it now."""
        longest = max(map(len, (*params.stop, *params.keep_stop)), default=0)
        searched = max(0, len(draft.text) - longest)
        draft.text += "".join(choice.text for choice in chunk.choices)
        reasons = [c.finish_reason for c in chunk.choices if c.finish_reason is not None]
        return reasons[0] if reasons else None, find_stop(draft.text, params, searched)

    def _count(self, text: str, usage: Usage | None) -> int:
        """Tokens of a new text: the server's count, else what our tokenizer makes of it."""
        told = usage.completion_tokens if usage is not None else None
        return told or len(self._tokenizer.encode_response(text).ids)

    def _compare(self, prompt: str, usage: Usage | None) -> None:
        """Warn, once, when the server reads other tokens than the tokenizer here would make."""
        if self._has_compared or usage is None or usage.prompt_tokens is None:
            return
        self._has_compared = True
        ours = len(self._tokenizer.encode_markup(prompt))
        if usage.prompt_tokens != ours:
            logger.warning(
                "policy server at %s: %s reads %d tokens where the tokenizer in "
                "RUNG_POLICY_TOKENIZER makes %d; it is another model's, or the server adds some",
                self._server.address,
                self.name,
                usage.prompt_tokens,
                ours,
            )


def _stopped(draft: Draft, at: int, stop: str, params: GenerateParams) -> Written:
    """The draft, ended by this string at this place."""
    if is_separator(stop, params):
        return draft.end("separator", text=draft.text[: at + len(stop)], ids_known=False)
    return draft.end("stop", text=draft.text[:at], ids_known=False)
