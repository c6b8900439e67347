"""A task's alphabet as a tokenizer: the files that a model made for one task is read with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from prm.chat import ChatTokenizer
from prm.engine.model import CausalLM
from prm.engine.sampler import Draft, Sampler, SamplingParams
from prm.errors import InvalidInput
from training.checkpoints import ModelSize, load_model, new_model, save_model
from training.data import encode_example, encode_problem
from training.tasks.chain_calc import ChainCalc
from training.tokenizer import alphabet_tokenizer
from training.types import Problem

ALPHABET = ChainCalc.alphabet or ""
TINY = ModelSize(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=32,
)
PROBLEM = Problem(text="47+12*03=", answer="77")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(new_model(TINY, seed=0, alphabet=ALPHABET), path, alphabet=ALPHABET)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ChatTokenizer:
    return ChatTokenizer(folder)


@given(text=st.text(ALPHABET, max_size=40))
def test_a_character_is_a_token_and_comes_back(tokenizer: ChatTokenizer, text: str) -> None:
    encoded = tokenizer.encode_response(text)
    assert list(encoded.ids) == [ALPHABET.index(character) for character in text]
    assert encoded.char_offsets == tuple((i, i + 1) for i in range(len(text)))
    assert tokenizer.decode(encoded.ids) == text


def test_an_example_is_the_problem_the_response_and_the_end(tokenizer: ChatTokenizer) -> None:
    example = encode_example(tokenizer, PROBLEM, "59;77;")
    # 2 + 3K + 1 tokens of prompt and 3K + 1 of response, with K = 2: a vocabulary of 17.
    assert (example.first, len(example.ids)) == (9, 16)
    assert (tokenizer.largest_id, tokenizer.eos_id) == (16, 15)
    assert example.ids[-1] == tokenizer.eos_id


def test_transformers_reads_the_same_ids(folder: Path, tokenizer: ChatTokenizer) -> None:
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": PROBLEM.text}]
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert tuple(ids) == encode_problem(tokenizer, PROBLEM)
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (15, 16, 17)


def test_a_character_of_no_alphabet_is_refused(tokenizer: ChatTokenizer) -> None:
    with pytest.raises(Exception, match="token"):
        tokenizer.encode_response("4 7")
    with pytest.raises(ValueError, match="twice"):
        alphabet_tokenizer("aba")


def test_text_that_a_model_has_no_tokens_for_is_the_callers_mistake(
    tokenizer: ChatTokenizer,
) -> None:
    with pytest.raises(InvalidInput, match=r"cannot read this text, at character 2 \('x'\)"):
        tokenizer.encode_response("12x")
    with pytest.raises(InvalidInput, match="write it in the characters"):
        encode_problem(tokenizer, Problem(text="What is 1+1?", answer="2"))


def test_a_model_over_an_alphabet_is_sampled_and_trained(
    folder: Path, tokenizer: ChatTokenizer
) -> None:
    embedding = load_model(folder).get_input_embeddings()
    assert isinstance(embedding, torch.nn.Embedding)
    assert embedding.num_embeddings == 17
    policy = CausalLM.load(folder, device="cpu", dtype=torch.float32)
    sampler = Sampler(policy, tokenizer, max_batch=4)
    draft = Draft(
        prompt=encode_problem(tokenizer, PROBLEM), params=SamplingParams(max_tokens=7), seed=0
    )
    sampler.add(draft)
    while sampler.busy:
        sampler.step()
    assert draft.completion is not None
    assert set(draft.completion.text) <= set(ALPHABET)
