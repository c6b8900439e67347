"""Events in a stream: one line of data each, whatever characters a model writes."""

import json

from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEBytesDecoder, SSEDecoder

from server.event_stream import json_event


def decoded(events: bytes) -> list[tuple[str | None, object]]:
    """As OpenAI's client reads them."""
    decoder: SSEBytesDecoder = SSEDecoder()
    return [(event.event, event.json()) for event in decoder.iter_bytes(iter([events]))]


@given(st.text(), st.sampled_from([None, "search"]))
def test_any_text_arrives_as_it_was(text: str, name: str | None) -> None:
    event = json_event(json.dumps({"text": text}, ensure_ascii=False), event=name)
    assert decoded(event) == [(name, {"text": text})]


def test_every_end_of_a_line_that_python_knows_stays_in_the_data() -> None:
    text = "a\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029b"
    assert len(text.splitlines()) > 8
    event = json_event(json.dumps(text, ensure_ascii=False))
    assert event.count(b"data: ") == 1
    assert decoded(event * 2) == [(None, text)] * 2
