"""Writes continuations with the engine process, by token ids: nothing is tokenised twice."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from prm.chat import ChatTokenizer
from prm.engine.client import EngineClient
from prm.engine.messages import FinishReason, SampleReply, SampleRequest
from prm.errors import InvalidInput
from prm.manifest import ModelVersion
from prm.types import Message
from search.generator import EndedBy, GenerateParams, Want, Written
from search.types import Prefix

_ENDED_BY: dict[FinishReason, EndedBy] = {
    "stop": "stop",
    "separator": "separator",
    "eos": "eos",
    "length": "length",
    "context": "length",
    "deadline": "deadline",
}


class LocalGenerator:
    """A policy version in the engine process. See `search.generator.Generator`."""

    def __init__(self, version: ModelVersion, engine: EngineClient) -> None:
        self.name = version.manifest.name
        self.version = version.manifest.version
        self._key = version.key
        self._context_limit = version.context_limit
        self._tokenizer = ChatTokenizer(version.folder)
        self._engine = engine

    @property
    def context_limit(self) -> int:
        """The most tokens of prompt and response together."""
        return self._context_limit

    async def generate(
        self, messages: Sequence[Message], wants: Sequence[Want], params: GenerateParams
    ) -> AsyncGenerator[Written]:
        """See `Generator.generate`."""
        least = self._tokenizer.least_tokens(*(message.content for message in messages))
        self._check_length(least, "at least ")
        prompt = self._tokenizer.encode_prompt(messages)
        self._check_length(len(prompt))
        prefixes = {want.number: self._ids(want.prefix) for want in wants}
        prompts = {number: prompt + ids for number, ids in prefixes.items()}
        by_number = {want.number: want for want in wants if self._has_room(prompts[want.number])}
        for want in wants:
            if want.number not in by_number:
                yield _nothing_more(want, len(prompt))
        if not by_number:
            return
        request = SampleRequest(
            id=0,
            model=self._key,
            numbers=tuple(by_number),
            prompts=tuple(prompts[number] for number in by_number),
            seeds=tuple(want.seed for want in by_number.values()),
            temperature=params.temperature,
            top_p=params.top_p,
            max_tokens=tuple(want.limit(params) for want in by_number.values()),
            stop=params.stop,
            keep_stop=params.keep_stop,
            seconds=params.seconds,
            top_k=params.top_k,
            written=tuple(len(prefixes[number]) for number in by_number),
        )
        async with aclosing(self._engine.sample(request)) as replies:
            async for reply in replies:
                before = prefixes[reply.number]
                yield self._written(by_number[reply.number], before, reply, len(prompt))

    def _check_length(self, length: int, about: str = "") -> None:
        if length >= self._context_limit:
            raise InvalidInput(
                f"the problem is {about}{length} tokens long, and {self._key} reads and writes at "
                f"most {self._context_limit} together; shorten it",
                param="problem",
            )

    def _has_room(self, prompt: Sequence[int]) -> bool:
        return len(prompt) < self._context_limit

    def _ids(self, prefix: Prefix) -> tuple[int, ...]:
        return prefix.ids or self._tokenizer.encode_response(prefix.text).ids

    def _written(
        self, want: Want, before: tuple[int, ...], reply: SampleReply, prompt_tokens: int
    ) -> Written:
        # A stop string may end inside a token: then the text was cut, and the ids say too much.
        is_whole = self._tokenizer.decode_after(before, reply.ids) == reply.text
        text = want.prefix.text + reply.text
        ids = before + reply.ids if is_whole else self._tokenizer.encode_response(text).ids
        return Written(
            number=want.number,
            prefix=Prefix(text=text, ids=ids),
            tokens=len(reply.ids),
            prompt_tokens=prompt_tokens,
            ended_by=_ENDED_BY[reply.finish_reason],
        )


def _nothing_more(want: Want, prompt_tokens: int) -> Written:
    """The model's context is full: the prefix is all there is."""
    return Written(
        number=want.number,
        prefix=want.prefix,
        tokens=0,
        prompt_tokens=prompt_tokens,
        ended_by="length",
    )
