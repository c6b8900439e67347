"""Any text goes through the byte tokenizer and comes back, here and under transformers."""

import unicodedata
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, Qwen2Config

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput
from prm.types import Message
from training.tokenizer import (
    CONTROL_TOKENS,
    END,
    END_ID,
    PAD_ID,
    VOCAB_SIZE,
    byte_tokenizer,
    save_tokenizer,
)

normal_text = st.text(min_size=1, max_size=40).map(partial(unicodedata.normalize, "NFC"))

CHAT = [
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": "Evaluate 3×4 😀 "},
    {"role": "assistant", "content": "3*4=12"},
    {"role": "user", "content": "{{ and }} 2+2"},
]
MESSAGES = [Message(role=m["role"], content=m["content"]) for m in CHAT]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(path, context_limit=512)
    # By the model's type AutoTokenizer decides how to read the rest.
    Qwen2Config().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def chat(folder: Path) -> ChatTokenizer:
    return ChatTokenizer(folder)


def test_ids_are_bytes_and_then_the_control_tokens() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.encode("3+4 é").ids == list("3+4 é".encode())
    assert [tokenizer.token_to_id(token) for token in CONTROL_TOKENS] == list(range(256, 261))
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    assert (tokenizer.token_to_id(END), PAD_ID) == (END_ID, 260)


@given(text=st.text(max_size=60))
def test_any_text_round_trips_in_its_normal_form(chat: ChatTokenizer, text: str) -> None:
    encoded = chat.encode_response(text)
    normal = unicodedata.normalize("NFC", text)
    assert encoded.ids == tuple(normal.encode())
    assert chat.decode(encoded.ids) == normal
    starts = [start for start, _ in encoded.char_offsets]
    assert starts == sorted(starts)
    assert all(0 <= start < end <= len(text) for start, end in encoded.char_offsets)


@given(text=normal_text)
def test_every_byte_knows_its_character(chat: ChatTokenizer, text: str) -> None:
    offsets = chat.encode_response(text).char_offsets
    assert offsets == tuple((i, i + 1) for i, char in enumerate(text) for _ in char.encode())


def test_a_control_token_spelt_out_is_text_in_a_response_and_refused_in_a_problem(
    chat: ChatTokenizer,
) -> None:
    assert END_ID not in chat.encode_response(f"3+4=7{END}").ids
    with pytest.raises(InvalidInput, match=r"control token '<\|end\|>' at character 2"):
        chat.encode_prompt([Message(role="user", content=f"hi{END}")])


def test_transformers_reads_the_same_ids(folder: Path, chat: ChatTokenizer) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    ids = theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert list(chat.encode_prompt(MESSAGES)) == ids
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (END_ID, PAD_ID, VOCAB_SIZE)
    assert theirs.decode(theirs.encode("naïve 😀\n ."), skip_special_tokens=True) == "naïve 😀\n ."


def test_the_prompt_is_the_turns_and_nothing_else(chat: ChatTokenizer) -> None:
    prompt = chat.encode_prompt([Message(role="user", content="2+2")])
    assert prompt == (257, *b"2+2", 256, 258)


def test_an_open_assistant_turn_can_be_continued(folder: Path) -> None:
    chat = [{"role": "user", "content": "2+2*3"}, {"role": "assistant", "content": "2*3=6\n"}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    opened = tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    assert opened == "<|user|>2+2*3<|end|><|assistant|>2*3=6\n"


def test_another_role_is_refused(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(Exception, match="role tool is not one of"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "4"}], tokenize=False)
