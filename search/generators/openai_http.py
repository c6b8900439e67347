"""Writes continuations by token ids through a policy server: vLLM, or SGLang.

    POST /tokenize        a chat up to the assistant's turn → token ids, once per chat
    POST /v1/completions  those ids and the prefix's ids → a stream of new text and new ids

Ids go out and ids come back, so a continuation starts exactly where its prefix ended, and nothing
is tokenised twice. `/v1/chat/completions` with `continue_final_message` cannot promise that: under
a chat template that trims messages (Llama 3's does), transformers strips the white space that the
prefix ends in, the step separator with it (`utils/chat_template_utils.py`, after "trailing spacing
that was trimmed").

**Seeds.** With vLLM, wants with the same prefix share a request: `n` of them, seeded by the first
one's seed, to which vLLM adds a choice's index. Any other server gets a request per want, with the
want's own seed (SGLang gives all `n` the same). Either way the same wants give the same texts, up
to the last bits of the logits, which depend on what else that server is running.

**Failures.** An answer that breaks off costs nothing of what it said: texts that had ended are out,
and the others are asked for again, each from its last token.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import stamina

from prm.errors import InvalidInput, Unavailable
from prm.types import Message
from search.generator import GenerateParams, Want, Written
from search.generators.drafts import (
    Draft,
    Put,
    as_they_end,
    find_stop,
    is_separator,
)
from search.generators.openai_client import BrokenOff, Choice, OpenAIClient, Prompt
from search.types import Prefix

# An event per token costs this process 20 µs a token, one per 8 tokens 4 µs (64 at once). vLLM
# sends the last tokens of a text at once, so only a deadline can lose some: at most 7 a text.
STREAM_INTERVAL = 8
# Below it vLLM decodes greedily, and then refuses n > 1 (`_SAMPLING_EPS` in sampling_params.py).
GREEDY_BELOW = 1e-5
# Times that a text is taken up again after its answer broke off.
RESUMPTIONS = 2
# Events of a request beyond one per token, before a server that never ends is left.
SPARE_EVENTS = 1000


class OpenAIGenerator:
    """A model of a policy server. See `search.generator.Generator`."""

    # The server does not say which weights stand behind a name.
    version = "external"

    def __init__(self, server: OpenAIClient, model: str) -> None:
        self.name = model
        self._server = server
        self._last_chat: tuple[tuple[Message, ...], Prompt] | None = None

    @property
    def context_limit(self) -> int | None:
        """The most tokens of prompt and response together, where the server told them."""
        return self._server.context_limit(self.name)

    async def generate(
        self, messages: Sequence[Message], wants: Sequence[Want], params: GenerateParams
    ) -> AsyncGenerator[Written]:
        """See `Generator.generate`."""
        deadline_s = deadline_of(params)
        try:
            async with asyncio.timeout_at(deadline_s):
                chat = await self._chat(tuple(messages))
                groups = await self._groups(wants, params)
        except TimeoutError:
            raise Unavailable(f"{self.name}: the time was up before its server answered") from None
        except Unavailable as error:
            raise of_policy(self.name, error) from error
        jobs = [partial(self._write, chat, group, params, deadline_s) for group in groups]
        async with aclosing(as_they_end(len(wants), jobs)) as pieces:
            async for piece in pieces:
                yield piece

    async def _chat(self, messages: tuple[Message, ...]) -> Prompt:
        """The chat's ids, which every round of a search asks for again."""
        if self._last_chat is None or self._last_chat[0] != messages:
            self._last_chat = messages, await self._server.encode_prompt(self.name, messages)
        chat = self._last_chat[1]
        check_length(self.name, len(chat.tokens), chat.max_model_len)
        return chat

    async def _groups(self, wants: Sequence[Want], params: GenerateParams) -> list[list[Want]]:
        """Wants that one request can answer: same prefix and limit, or each alone."""
        is_greedy = params.temperature < GREEDY_BELOW
        if is_greedy or (await self._server.served(self.name)).owned_by != "vllm":
            return [[want] for want in wants]
        alike: dict[tuple[Prefix, int], list[Want]] = {}
        for want in wants:
            alike.setdefault((want.prefix, want.limit(params)), []).append(want)
        return list(alike.values())

    async def _write(
        self,
        chat: Prompt,
        wants: Sequence[Want],
        params: GenerateParams,
        deadline_s: float | None,
        put: Put,
    ) -> None:
        """Continue one prefix once per want: exactly one `Written` each, or an exception."""
        drafts = [
            Draft(
                want=want,
                seed=wants[0].seed + place,
                limit=want.limit(params),
                prompt_tokens=len(chat.tokens),
            )
            for place, want in enumerate(wants)
        ]
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._write_all(chat, drafts, params, put)
        except TimeoutError:
            for draft in drafts:
                if not draft.is_written:
                    put(draft.end("deadline"))
        except Unavailable as error:
            raise of_policy(self.name, error) from error

    async def _write_all(
        self, chat: Prompt, drafts: Sequence[Draft], params: GenerateParams, put: Put
    ) -> None:
        """One request for all drafts; when it breaks off, one more for each that had not ended."""
        prefix_ids = await self._exact_ids(drafts[0].want.prefix)
        for draft in drafts:
            draft.prefix_ids = prefix_ids
        try:
            await self._ask(chat, drafts, params, put)
        except BrokenOff:
            try:
                async with asyncio.TaskGroup() as group:
                    for draft in drafts:
                        if not draft.is_written:
                            group.create_task(self._resume(chat, draft, params, put))
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None

    async def _exact_ids(self, prefix: Prefix) -> tuple[int, ...]:
        """Ids that say this prefix and no more: those sampled for it, or else those of its text.

        A stop string may end inside a token: then the text was cut, and the ids say too much. Most
        of what a round writes is never continued, so that is found out here and not where it ends.
        """
        if prefix.ids and (prefix.is_exact or await self._says(prefix.ids, prefix.text)):
            return prefix.ids
        return await self._server.encode_response(self.name, prefix.text) if prefix.text else ()

    async def _resume(self, chat: Prompt, draft: Draft, params: GenerateParams, put: Put) -> None:
        """Write on from what is there."""
        async for attempt in stamina.retry_context(
            on=BrokenOff, attempts=RESUMPTIONS, wait_initial=0.2, wait_max=2.0
        ):
            with attempt:
                # In the middle of a character the ids are ahead of the text.
                if not await self._says(draft.ids, draft.text):
                    draft.restart()
                draft.seam = len(draft.text)
                if draft.tokens >= draft.limit:
                    put(draft.end("length"))
                else:
                    await self._ask(chat, [draft], params, put)

    async def _ask(
        self, chat: Prompt, drafts: Sequence[Draft], params: GenerateParams, put: Put
    ) -> None:
        """One request for all drafts, from where the first one stands."""
        prompt = (*chat.tokens, *drafts[0].prefix_ids, *drafts[0].ids)
        if len(prompt) >= chat.max_model_len:
            for draft in drafts:
                put(draft.end("length"))
            return
        left = drafts[0].limit - drafts[0].tokens
        body = {
            "model": self.name,
            "prompt": prompt,
            "n": len(drafts),
            "seed": drafts[0].seed_here,
            "max_tokens": left,
            "stop": sorted({*params.stop, *params.keep_stop}),
            **sampling(params),
            **_ANSWER_SHAPE,
        }
        events_left = len(drafts) * left + SPARE_EVENTS
        async with aclosing(self._server.complete(body)) as chunks:
            async for chunk in chunks:
                for choice in chunk.choices:
                    self._take(drafts, choice, params, put)
                if all(draft.is_written for draft in drafts):
                    return
                events_left -= 1
                if not events_left:
                    raise Unavailable(f"{self._server.label} goes on without end")
        raise BrokenOff(f"{self._server.label} ended its answer early")

    def _take(
        self, drafts: Sequence[Draft], choice: Choice, params: GenerateParams, put: Put
    ) -> None:
        """Add a piece to its draft, which may be its last."""
        label = self._server.label
        if not 0 <= choice.index < len(drafts):
            raise Unavailable(f"{label} answers for text {choice.index} of {len(drafts)}")
        draft = drafts[choice.index]
        if draft.is_written:
            return
        if choice.token_ids is None and choice.text:
            raise Unavailable(
                f"{label} tells no token ids; with RUNG_POLICY_PROMPTS=text it need not"
            )
        draft.text += choice.text
        draft.ids += choice.token_ids or ()
        draft.tokens = len(draft.ids)
        if draft.tokens > draft.limit:
            raise Unavailable(f"{label} writes more than the {draft.limit} tokens that were asked")
        if (stop := _stop_over_seam(draft, params)) is not None:
            put(_stopped(draft, stop, params))
        elif choice.finish_reason is not None:
            put(self._finish(draft, choice, params))

    def _finish(self, draft: Draft, last: Choice, params: GenerateParams) -> Written:
        """The draft, ended for the reason that its last piece gives."""
        if last.finish_reason == "length":
            return draft.end("length")
        if last.finish_reason != "stop":
            raise Unavailable(f"{self._server.label} gave up a text ({last.finish_reason!r:.40})")
        if isinstance(last.stop_reason, str):
            return _stopped(draft, last.stop_reason, params)
        return draft.end("eos")

    async def _says(self, ids: Sequence[int], text: str) -> bool:
        """Whether these ids are this text and no more.

        Metaspace tokenizers (Llama 2, Mistral) leave out the space that a text begins with.
        """
        decoded = await self._server.decode(self.name, ids)
        return text in (decoded, " " + decoded)


def _stopped(draft: Draft, stop: str, params: GenerateParams) -> Written:
    """The draft, ended by this string."""
    before, _, _ = draft.text.partition(stop)
    if not is_separator(stop, params):
        return draft.end("stop", text=before, ids_known=False)
    return draft.end("separator", text=before + stop, is_exact=False)


def _stop_over_seam(draft: Draft, params: GenerateParams) -> str | None:
    """A stop string that lies over a draft's seam: the server saw only its end."""
    if not draft.seam:
        return None
    longest = max(map(len, (*params.stop, *params.keep_stop)), default=0)
    found = find_stop(draft.text, params, max(0, draft.seam - longest + 1))
    return found[1] if found is not None and found[0] < draft.seam else None


def deadline_of(params: GenerateParams) -> float | None:
    """The event loop's time at which a call must be over; None is never."""
    if params.seconds is None:
        return None
    return asyncio.get_running_loop().time() + params.seconds


def check_length(policy: str, length: int, limit: int) -> None:
    """Raises InvalidInput when a chat leaves the policy no room to write."""
    if length >= limit:
        raise InvalidInput(
            f"the problem is {length} tokens long, and {policy} reads and writes at most {limit} "
            "together; shorten it",
            param="problem",
        )


def of_policy(name: str, error: Unavailable) -> Unavailable:
    """The error, saying whose policy it is that cannot write now."""
    return Unavailable(f"policy {name!r}: {error}", retry_after_s=error.retry_after_s)


def sampling(params: GenerateParams) -> Mapping[str, float]:
    """What is asked for and nothing else: a model's `generation_config.json` would add its own."""
    return {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


_ANSWER_SHAPE: Mapping[str, Any] = {
    "stream": True,
    "stream_interval": STREAM_INTERVAL,
    "return_token_ids": True,
    "include_stop_str_in_output": True,
    "no_stop_trim": True,
}
