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

**Streams.** Where nobody watches the texts come, short ones are asked for whole: an answer in
pieces costs the server's front end and this process a message for each of them.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial

import stamina

from prm.errors import Unavailable
from prm.types import Message
from search.generator import GenerateParams, Want, Written
from search.generators.calls import RESUMPTIONS, check_length, deadline_of, of_policy
from search.generators.drafts import Draft, Put, as_they_end
from search.generators.ending_tokens import ending_tokens
from search.generators.openai_client import BrokenOff, OpenAIClient
from search.generators.openai_completion import Completion
from search.generators.openai_wire import Prompt
from search.types import Prefix

# Below it vLLM decodes greedily, and then refuses n > 1 (`_SAMPLING_EPS` in sampling_params.py).
GREEDY_BELOW = 1e-5
# The longest texts that are asked for whole. At 5 tokens a second they are there within the 120 s
# that an answer may keep one waiting.
WHOLE_TOKENS = 512


class OpenAIGenerator:
    """A model of a policy server. See `search.generator.Generator`."""

    # The server does not say which weights stand behind a name.
    version = "external"

    def __init__(self, server: OpenAIClient, model: str) -> None:
        self.name = model
        self._server = server
        self._last_chat: tuple[tuple[Message, ...], Prompt] | None = None
        self._ending: dict[frozenset[str], tuple[int, ...]] = {frozenset(): ()}

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
                completion = await self._completion(tuple(messages), params)
                groups = await self._groups(wants, params)
        except TimeoutError:
            raise Unavailable(f"{self.name}: the time was up before its server answered") from None
        except Unavailable as error:
            raise of_policy(self.name, error) from error
        jobs = [partial(self._write, completion, group, deadline_s) for group in groups]
        async with aclosing(as_they_end(len(wants), jobs)) as pieces:
            async for piece in pieces:
                yield piece

    async def _completion(
        self, messages: tuple[Message, ...], params: GenerateParams
    ) -> Completion:
        """What the requests of this call have in common."""
        return Completion(
            server=self._server,
            model=self.name,
            chat=await self._chat(messages),
            params=params,
            ending_tokens=await self._ending_tokens(frozenset((*params.stop, *params.keep_stop))),
        )

    async def _ending_tokens(self, stops: frozenset[str]) -> tuple[int, ...]:
        """See `ending_tokens`; a search asks for the same ones in every round."""
        if stops not in self._ending and (tokenizer := await self._server.tokenizer_of(self.name)):
            # A large vocabulary takes a tenth of a second the first time.
            self._ending[stops] = await asyncio.to_thread(ending_tokens, tokenizer, stops)
        return self._ending.get(stops, ())

    async def _chat(self, messages: tuple[Message, ...]) -> Prompt:
        """The chat's ids, which every round of a search asks for again."""
        if self._last_chat is None or self._last_chat[0] != messages:
            self._last_chat = messages, await self._server.encode_prompt(self.name, messages)
        chat = self._last_chat[1]
        check_length(self.name, len(chat.tokens), chat.max_model_len)
        return chat

    async def _groups(self, wants: Sequence[Want], params: GenerateParams) -> list[list[Want]]:
        """Wants that one request can answer: same prefix and limit, or each alone."""
        if params.temperature < GREEDY_BELOW or not await self._is_vllm():
            return [[want] for want in wants]
        alike: dict[tuple[Prefix, int], list[Want]] = {}
        for want in wants:
            alike.setdefault((want.prefix, want.limit(params)), []).append(want)
        return list(alike.values())

    async def _is_vllm(self) -> bool:
        return (await self._server.served(self.name)).owned_by == "vllm"

    async def _write(
        self, completion: Completion, wants: Sequence[Want], deadline_s: float | None, put: Put
    ) -> None:
        """Continue one prefix once per want: exactly one `Written` each, or an exception."""
        drafts = [
            Draft(
                want=want,
                seed=wants[0].seed + place,
                limit=want.limit(completion.params),
                prompt_tokens=len(completion.chat.tokens),
            )
            for place, want in enumerate(wants)
        ]
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._write_all(completion, drafts, put)
        except TimeoutError:
            for draft in drafts:
                if not draft.is_written:
                    put(draft.end("deadline"))
        except Unavailable as error:
            raise of_policy(self.name, error) from error

    async def _write_all(self, completion: Completion, drafts: Sequence[Draft], put: Put) -> None:
        """One request for all drafts; when it breaks off, one more for each that had not ended."""
        prefix_ids = await self._exact_ids(drafts[0].want.prefix)
        for draft in drafts:
            draft.prefix_ids = prefix_ids
        is_streamed = not await self._may_come_whole(drafts[0], completion.params)
        try:
            await replace(completion, is_streamed=is_streamed).ask(drafts, put)
        except BrokenOff:
            try:
                async with asyncio.TaskGroup() as group:
                    for draft in drafts:
                        if not draft.is_written:
                            group.create_task(self._resume(completion, draft, put))
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None

    async def _may_come_whole(self, draft: Draft, params: GenerateParams) -> bool:
        """Whether nothing would be lost by it: a deadline takes what is there of a text."""
        is_awaited = params.is_watched or params.seconds is not None
        return not is_awaited and draft.limit <= WHOLE_TOKENS and await self._is_vllm()

    async def _exact_ids(self, prefix: Prefix) -> tuple[int, ...]:
        """Ids that say this prefix and no more: those sampled for it, or else those of its text.

        A stop string may end inside a token: then the text was cut, and the ids say too much. Most
        of what a round writes is never continued, so that is found out here and not where it ends.
        """
        if prefix.ids and (prefix.is_exact or await self._says(prefix.ids, prefix.text)):
            return prefix.ids
        return await self._server.encode_response(self.name, prefix.text) if prefix.text else ()

    async def _resume(self, completion: Completion, draft: Draft, put: Put) -> None:
        """Write on from what is there."""
        async for attempt in stamina.retry_context(
            on=BrokenOff, attempts=RESUMPTIONS, wait_initial=0.2, wait_max=2.0
        ):
            with attempt:
                # In the middle of a character the ids are ahead of the text.
                if not await self._says(draft.ids, draft.text):
                    draft.restart()
                draft.seam = len(draft.text)
                if not draft.left:
                    put(draft.end("length"))
                else:
                    await completion.ask([draft], put)

    async def _says(self, ids: Sequence[int], text: str) -> bool:
        """Whether these ids are this text and no more.

        Metaspace tokenizers (Llama 2, Mistral) leave out the space that a text begins with.
        """
        decoded = await self._server.decode(self.name, ids)
        return text in (decoded, " " + decoded)
