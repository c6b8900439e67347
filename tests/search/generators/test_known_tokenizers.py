"""Tokenizers at hand: proven against a server's before they are used, and what for."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from prm.chat import ChatTokenizer
from prm.errors import Unavailable
from prm.types import Message
from search.generators.ending_tokens import HALF_A_CHARACTER, ending_tokens
from search.generators.known_tokenizers import PROBE, KnownTokenizers
from tests.factories import POLICY

pytestmark = pytest.mark.anyio


@dataclass
class Routes:
    """A server's look-ups, by this tokenizer; `is_dead` while it does not answer."""

    tokenizer: ChatTokenizer
    is_dead: bool = False
    asked: list[str] = field(default_factory=list)

    def ask(self, what: str) -> None:
        self.asked.append(what)
        if self.is_dead:
            raise Unavailable("gone")

    async def look_up_prompt(self, model: str, messages: Sequence[Message]) -> tuple[int, ...]:
        self.ask("prompt")
        return self.tokenizer.encode_prompt(messages)

    async def look_up_response(self, model: str, response: str) -> tuple[int, ...]:
        self.ask("response")
        return self.tokenizer.encode_response(response).ids

    async def look_up_text(self, model: str, ids: Sequence[int]) -> str:
        self.ask("text")
        return self.tokenizer.decode(ids)


@pytest.fixture(scope="module")
def folder(tiny_models: Path) -> Path:
    return tiny_models / POLICY / "1"


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "changed"))


async def test_a_tokenizer_that_says_the_same_is_used_and_asked_about_once(folder: Path) -> None:
    server = Routes(ChatTokenizer(folder))
    known = KnownTokenizers({"m": folder})
    found = await known.of("m", server)
    assert found is not None
    assert {*server.asked} == {"prompt", "response", "text"}
    server.asked.clear()
    assert await known.of("m", server) is found
    assert await known.of("another", server) is None
    assert not server.asked
    known.forget()
    assert await known.of("m", server) is not None
    assert server.asked


async def test_another_chat_template_is_found_out(folder: Path, changed: Path) -> None:
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text() + "{{ ' ' }}")
    server = Routes(ChatTokenizer(changed))
    assert await KnownTokenizers({"m": folder}).of("m", server) is None


@pytest.mark.parametrize("pair", ["15", "@Z"])
async def test_two_tokens_that_changed_places_are_found_out(
    folder: Path, changed: Path, pair: str
) -> None:
    # The first two are in the texts that are compared, the others only among the ids.
    assert [character in PROBE for character in pair] == [pair == "15"] * 2
    contents = json.loads((changed / "tokenizer.json").read_text())
    vocabulary = contents["model"]["vocab"]
    one, other = pair[0], pair[1]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (changed / "tokenizer.json").write_text(json.dumps(contents))
    assert await KnownTokenizers({"m": folder}).of("m", Routes(ChatTokenizer(changed))) is None


async def test_a_server_that_does_not_answer_proves_nothing(folder: Path) -> None:
    server = Routes(ChatTokenizer(folder), is_dead=True)
    known = KnownTokenizers({"m": folder})
    with pytest.raises(Unavailable):
        await known.of("m", server)
    server.is_dead = False
    assert await known.of("m", server) is not None


async def test_a_folder_that_has_no_tokenizer_any_more_is_passed_over(
    folder: Path, changed: Path
) -> None:
    known = KnownTokenizers({"m": changed})
    shutil.rmtree(changed)
    assert await known.of("m", Routes(ChatTokenizer(folder))) is None


@pytest.mark.parametrize("stops", [{"\n"}, {"1", "##"}, {"½"}, {" "}])
def test_ending_tokens_are_those_whose_text_holds_a_stop_string(
    folder: Path, stops: set[str]
) -> None:
    tokenizer = ChatTokenizer(folder)
    found = ending_tokens(tokenizer, frozenset(stops))
    for token_id in range(tokenizer.largest_id + 1):
        text = tokenizer.decode([token_id])
        is_whole = HALF_A_CHARACTER not in text
        assert (token_id in found) == (is_whole and any(stop in text for stop in stops))


def test_where_too_many_tokens_would_end_a_text_none_is_named(folder: Path) -> None:
    tokenizer, stops = ChatTokenizer(folder), frozenset("0123")
    assert len(ending_tokens(tokenizer, stops, most=4)) == 4
    assert ending_tokens(tokenizer, stops, most=3) == ()
