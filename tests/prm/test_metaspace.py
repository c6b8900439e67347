"""Tokenizers that write a space as the beginning of a word (Llama 2, Mistral): none is lost."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor

from prm.chat import ChatTokenizer
from prm.engine.model import CausalLM
from prm.engine.sampler import Completion, Draft, Sampler, SamplingParams
from tests.factories import POLICY

WORDS = ("one", "two", "three", "plus", "is", "so", "five", ".")


@pytest.fixture(scope="module")
def folder(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy with a tokenizer of words; the ids that are no words are bytes."""
    copy = shutil.copytree(
        tiny_models / POLICY / "1", tmp_path_factory.mktemp("metaspace") / "policy"
    )
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # Words take the ids of bytes that no UTF-8 text holds, and of capital letters.
    places = [*range(0xF5, 0x100), *range(ord("A"), ord("Z") + 1)]
    words = [form for word in WORDS for form in (f"▁{word}", word)]
    for place, word in zip(places, [*words, "▁"], strict=False):
        pieces[1 + place] = word
    # No merges: of a text, words come out as bytes. Here it is decoding that is looked at.
    model = BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    (copy / "tokenizer.json").unlink()
    tokenizer.save(str(copy / "tokenizer.json"))
    return copy


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ChatTokenizer:
    return ChatTokenizer(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> CausalLM:
    return CausalLM.load(folder)


def ids_of(tokenizer: ChatTokenizer, *pieces: str) -> tuple[int, ...]:
    ids = [tokenizer.token_id(piece) for piece in pieces]
    assert None not in ids
    return tuple(i for i in ids if i is not None)


def test_a_decoder_drops_the_space_that_a_text_begins_with(tokenizer: ChatTokenizer) -> None:
    ids = ids_of(tokenizer, "▁one", "▁plus", "▁two")
    assert tokenizer.decode(ids) == "one plus two"
    assert tokenizer.decode(ids[1:]) == "plus two"
    assert tokenizer.decode_after(ids[:1], ids[1:]) == " plus two"
    assert tokenizer.decode_after((), ids) == "one plus two"


def test_a_character_cut_in_two_is_not_made_up(tokenizer: ChatTokenizer) -> None:
    half, rest = ids_of(tokenizer, "▁one", "<0xC2>"), ids_of(tokenizer, "<0xBD>")
    assert tokenizer.decode((*half, *rest)) == "one½"
    assert tokenizer.decode(half).endswith("\ufffd")
    stream = tokenizer.decode_stream(half)
    assert tokenizer.decode_next(stream, ids_of(tokenizer, "▁two")[0]) == "two"


@pytest.mark.parametrize("cut", range(5))
def test_a_stream_goes_on_where_the_text_before_it_ends(tokenizer: ChatTokenizer, cut: int) -> None:
    ids = ids_of(tokenizer, "▁one", "▁plus", "<0xC2>", "<0xBD>", "▁is", ".")
    if cut == 3:  # in the middle of ½
        cut = 4
    stream = tokenizer.decode_stream(ids[:cut])
    streamed = "".join(tokenizer.decode_next(stream, token) for token in ids[cut:])
    assert tokenizer.decode(ids[:cut]) + streamed == tokenizer.decode(ids) == "one plus½ is."


def write(
    sampler: Sampler, prompt: Sequence[int], written: Sequence[int], params: SamplingParams
) -> Completion:
    draft = Draft(prompt=(*prompt, *written), written=len(written), params=params, seed=5)
    sampler.add(draft)
    while draft.completion is None:
        sampler.step()
    return draft.completion


@pytest.mark.parametrize("keep_stop", [(), (" is",), (" ",)])
def test_a_continuation_in_the_sampler_keeps_its_spaces(
    model: CausalLM, tokenizer: ChatTokenizer, keep_stop: tuple[str, ...]
) -> None:
    # Of the model's choices only those that are words: random weights would write mostly bytes.
    forms = {tokenizer.token_id(f"▁{word}") for word in WORDS}
    bias = [0.0 if i in forms else -100.0 for i in range(model.head.shape[0])]
    sampler = Sampler(_Biased(model, bias), tokenizer, max_batch=2)
    prompt = ids_of(tokenizer, "▁two", "▁plus", "▁three")
    params = SamplingParams(temperature=0.0, max_tokens=8)
    whole = write(sampler, prompt, (), params)
    assert whole.text.count(" ") == 7
    for cut in range(1, 8):
        before = whole.ids[:cut]
        step = SamplingParams(temperature=0.0, max_tokens=8 - cut, keep_stop=keep_stop)
        rest = write(sampler, prompt, before, step)
        assert rest.text.startswith(" ")
        assert whole.text.startswith(tokenizer.decode(before) + rest.text)
        if not keep_stop:
            assert tokenizer.decode(before) + rest.text == whole.text


class _Biased(CausalLM):
    """The same model, that would rather write some tokens than others."""

    def __init__(self, model: CausalLM, bias: Sequence[float]) -> None:
        self.__dict__.update(model.__dict__)
        self._bias = bias

    def next_logits(self, hidden: Tensor) -> Tensor:
        """See `CausalLM.next_logits`."""
        logits = super().next_logits(hidden)
        return logits + logits.new_tensor(self._bias)
