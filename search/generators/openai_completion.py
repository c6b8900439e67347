"""One completion by token ids: the request for some drafts, and what its pieces make of them.

A text may end at a stop string, which the server's front end finds in the text, or at one of the
tokens that hold one (`ending_tokens.py`), which its engine finds. Either way the text ends with the
string, and what becomes of that is the same.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from prm.errors import Unavailable
from search.generator import GenerateParams, Written
from search.generators.calls import SPARE_EVENTS
from search.generators.drafts import Draft, Put, find_stop, is_separator
from search.generators.openai_client import BrokenOff, OpenAIClient
from search.generators.openai_wire import Choice, Chunk, Prompt, answer_shape, sampling


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What the requests of one call have in common.

    `ending_tokens` are sent along with the stop strings; none need be. An answer that is not
    streamed comes at once, when all its texts have ended.
    """

    server: OpenAIClient
    model: str
    chat: Prompt
    params: GenerateParams
    ending_tokens: Sequence[int] = ()
    is_streamed: bool = True

    async def ask(self, drafts: Sequence[Draft], put: Put) -> None:
        """One request for all drafts, from where the first one stands.

        Raises BrokenOff when the answer does; what has come of it is in the drafts.
        """
        prompt = (*self.chat.tokens, *drafts[0].prefix_ids, *drafts[0].ids)
        if len(prompt) >= self.chat.max_model_len:
            for draft in drafts:
                put(draft.end("length"))
            return
        chunks = self._chunks(prompt, drafts[0], len(drafts))
        events_left = len(drafts) * drafts[0].left + SPARE_EVENTS
        async with aclosing(chunks):
            async for chunk in chunks:
                for choice in chunk.choices:
                    self._take(drafts, choice, put)
                if all(draft.is_written for draft in drafts):
                    return
                events_left -= 1
                if not events_left:
                    raise Unavailable(f"{self.server.label} goes on without end")
        raise BrokenOff(f"{self.server.label} ended its answer early")

    async def _chunks(self, prompt: Sequence[int], first: Draft, n: int) -> AsyncGenerator[Chunk]:
        body = {
            "model": self.model,
            "prompt": prompt,
            "n": n,
            "seed": first.seed_here,
            "max_tokens": first.left,
            "stop": sorted({*self.params.stop, *self.params.keep_stop}),
            **sampling(self.params),
            **answer_shape(is_streamed=self.is_streamed),
        }
        if self.ending_tokens:
            body["stop_token_ids"] = self.ending_tokens
        if not self.is_streamed:
            yield await self.server.complete_whole(body)
            return
        async with aclosing(self.server.complete(body)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _take(self, drafts: Sequence[Draft], choice: Choice, put: Put) -> None:
        """Add a piece to its draft, which may be its last."""
        label = self.server.label
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
        if (stop := _stop_over_seam(draft, self.params)) is not None:
            put(_stopped(draft, stop, self.params))
        elif choice.finish_reason is not None:
            put(self._finish(draft, choice))

    def _finish(self, draft: Draft, last: Choice) -> Written:
        """The draft, ended for the reason that its last piece gives."""
        if last.finish_reason == "length":
            return draft.end("length")
        if last.finish_reason != "stop":
            raise Unavailable(f"{self.server.label} gave up a text ({last.finish_reason!r:.40})")
        if isinstance(last.stop_reason, str):
            return _stopped(draft, last.stop_reason, self.params)
        if last.stop_reason is None or last.stop_reason not in self.ending_tokens:
            return draft.end("eos")
        found = find_stop(draft.text, self.params)
        if found is None:
            raise Unavailable(
                f"{self.server.label} ended a text with token {last.stop_reason}, and it does not "
                "say what that token says here"
            )
        return _stopped(draft, found[1], self.params)


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
