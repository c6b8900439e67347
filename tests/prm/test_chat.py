"""Our torch-free tokenizer gives the same ids as transformers' own."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput, ModelFolderError
from prm.types import Message
from tests.factories import POLICY

messages = st.lists(
    st.builds(
        Message,
        role=st.sampled_from(["system", "user", "assistant"]),
        content=st.text(max_size=30).filter(lambda text: "<|" not in text),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def folder(tiny_models: Path) -> Path:
    return tiny_models / POLICY / "1"


@pytest.fixture(scope="module")
def ours(folder: Path) -> ChatTokenizer:
    return ChatTokenizer(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


@given(messages)
def test_prompt_ids_equal_apply_chat_template(
    ours: ChatTokenizer, theirs: PreTrainedTokenizerBase, messages: list[Message]
) -> None:
    chat = [{"role": m.role, "content": m.content} for m in messages]
    expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert list(ours.encode_prompt(messages)) == expected


@given(st.text(max_size=50))
def test_response_ids_equal_transformers_encode(
    ours: ChatTokenizer, theirs: PreTrainedTokenizerBase, text: str
) -> None:
    if "<|" not in text:
        assert list(ours.encode_response(text).ids) == theirs.encode(text)


def test_a_template_that_refuses_is_the_callers_error(tmp_path: Path, folder: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no such turn') }}")
    with pytest.raises(InvalidInput, match="no such turn"):
        ChatTokenizer(tmp_path).encode_prompt([Message(role="user", content="hi")])


def test_an_older_folder_keeps_its_templates_by_name(
    tmp_path: Path, folder: Path, ours: ChatTokenizer
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    template = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").unlink()
    path = tmp_path / "tokenizer_config.json"
    named = [{"name": "rag", "template": "x"}, {"name": "default", "template": template}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}))
    hello = [Message(role="user", content="hi")]
    assert ChatTokenizer(tmp_path).encode_prompt(hello) == ours.encode_prompt(hello)


def test_a_template_cannot_reach_python(tmp_path: Path, folder: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    with pytest.raises(InvalidInput, match="refuses these messages"):
        ChatTokenizer(tmp_path).encode_prompt([Message(role="user", content="hi")])


def test_a_broken_tokenizer_file_is_named(tmp_path: Path, folder: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json"):
        ChatTokenizer(tmp_path)
