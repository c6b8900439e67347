"""A search's events as the chunks of a streamed chat completion.

The winner's text goes out as it becomes certain, the other answers' at the end. Official OpenAI
clients take every event for a chunk, whatever its name (`openai/_streaming.py` looks only for
`thread.`), so events of the search are sent only where they were asked for, and have a chunk's
shape: no choices, and the event in `search_event`.
"""

import time
from collections.abc import Iterator

from search.types import Candidate
from server.certain_text import CertainText
from server.chat_response import chat_id, chat_usage, fingerprint, finish_reason, ranked, search_out
from server.event_stream import json_event
from server.schemas.chat import ChatChunk, ChatRequest, ChunkChoice, Delta, StreamOptions
from server.schemas.common import ErrorBody
from server.schemas.search import CandidateOut, EventOut, SearchResponse
from server.search_response import PreparedSearch


class ChatStream:
    """The chunks of one completion: `lines` for every event, in order."""

    def __init__(self, body: ChatRequest, prepared: PreparedSearch) -> None:
        self._body = body
        self._tree: list[Candidate] = prepared.run.tree
        self._options = body.stream_options or StreamOptions()
        # Where a search may go back, any text can be overtaken: nothing is certain before its end.
        goes_forward = prepared.request.strategy.is_forward_only
        self._certain = CertainText() if goes_forward else None
        self._sent = ""
        generator = prepared.generator
        self._empty = ChatChunk(
            id=chat_id(prepared.id),
            created=int(time.time()),
            model=body.model,
            system_fingerprint=fingerprint(generator.name, generator.version),
        )
        self._begun: set[int] = set()

    def lines(self, event: EventOut | SearchResponse) -> Iterator[bytes]:
        """What an event adds to the stream; a result ends it."""
        if isinstance(event, SearchResponse):
            yield from self._end(event)
            return
        if self._options.search_events:
            yield self._line(self._empty.model_copy(update={"search_event": event}), "search")
        if self._certain is not None and (new := self._certain.take(event)):
            self._sent += new
            yield self._piece(0, new)

    @staticmethod
    def error_line(error: ErrorBody) -> bytes:
        """An error after the headers: OpenAI's clients raise it as an APIError."""
        return json_event(error.model_dump_json())

    def _end(self, result: SearchResponse) -> Iterator[bytes]:
        """The rest of the winner, the other answers, why each ended, and the accounts."""
        answers = ranked(result)[: self._body.n or 1]
        assert result.text.startswith(self._sent), "what was certain did not stay so"
        yield self._piece(0, result.text[len(self._sent) :])
        for place, answer in enumerate(answers[1:], start=1):
            yield self._piece(place, answer.text)
        for place, answer in enumerate(answers):
            yield self._last(place, answer, result)
        if not answers:
            yield self._last(0, None, result)
        if self._options.include_usage:
            usage = chat_usage(result, answers, self._tree)
            yield self._line(self._empty.model_copy(update={"usage": usage}))

    def _piece(self, place: int, text: str) -> bytes:
        is_first = place not in self._begun
        self._begun.add(place)
        delta = Delta(role="assistant" if is_first else None, content=text)
        return self._chunk(ChunkChoice(index=place, delta=delta))

    def _last(self, place: int, answer: CandidateOut | None, result: SearchResponse) -> bytes:
        choice = ChunkChoice(
            index=place,
            delta=Delta(),
            finish_reason=finish_reason(answer) if answer else "length",
            score=answer.score if answer else None,
            answer=answer.answer if answer else None,
            tests=answer.tests if answer else None,
        )
        search = search_out(self._body, result) if place == 0 else None
        return self._chunk(choice, search=search)

    def _chunk(self, choice: ChunkChoice, **more: object) -> bytes:
        return self._line(self._empty.model_copy(update={"choices": (choice,)} | more))

    def _line(self, chunk: ChatChunk, event: str | None = None) -> bytes:
        exclude = None if self._options.include_usage else {"usage"}
        return json_event(chunk.model_dump_json(exclude=exclude), event=event)
