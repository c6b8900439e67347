"""Tokenizers that need no training: one token per byte of UTF-8, or per character of an alphabet.

Written in the files that transformers and vLLM read without remote code. A byte, or a character, is
one token whatever stands around it, so a text's tokens never depend on what follows it. An alphabet
is for a task that needs no other characters: its chat is the problem and nothing around it.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END, USER, ASSISTANT, SYSTEM, PAD = (
    "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>"
)  # fmt: skip
CONTROL_TOKENS = (END, USER, ASSISTANT, SYSTEM, PAD)
VOCAB_SIZE = 256 + len(CONTROL_TOKENS)
END_ID, PAD_ID = 256, VOCAB_SIZE - 1

# A message is its role's control token, its text and the end token; no turn is added unasked.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{ raise_exception('role ' ~ message['role'] ~ ' is not one of system, user, assistant') }}
{%- endif -%}
{{ '<|' ~ message['role'] ~ '|>' ~ message['content'] ~ '<|end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}
"""


# The problem as it is; a turn of the assistant is ended, as training ends it.
ALPHABET_TEMPLATE = """\
{%- for message in messages -%}
{{ message['content'] }}{%- if message['role'] == 'assistant' -%}{{ '<|end|>' }}{%- endif -%}
{%- endfor -%}
"""


def vocab_size(alphabet: str | None) -> int:
    """How many tokens there are: bytes and control tokens, or characters, the end and padding."""
    return VOCAB_SIZE if alphabet is None else len(alphabet) + 2


def end_and_pad_ids(alphabet: str | None) -> tuple[int, int]:
    """The ids of the end token and of padding."""
    return (END_ID, PAD_ID) if alphabet is None else (len(alphabet), len(alphabet) + 1)


def alphabet_tokenizer(alphabet: str) -> Tokenizer:
    """The bare tokenizer: id = place in the alphabet, then the end token and padding.

    Encoding any other character raises. Raises ValueError for a character that stands twice.

    >>> alphabet_tokenizer("0123456789=").encode("12=").ids
    [1, 2, 10]
    """
    if len(set(alphabet)) < len(alphabet):
        raise ValueError(f"the alphabet {alphabet!r} has a character twice")
    tokenizer = Tokenizer(
        models.WordLevel(vocab={c: i for i, c in enumerate(alphabet)}, unk_token="<|none|>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in (END, PAD)]
    )
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """The bare tokenizer: id = byte value, then the control tokens from 256 on.

    >>> byte_tokenizer().encode("3+4").ids
    [51, 43, 52]
    """
    letters = _byte_letters()
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    # transformers 5 reads every Qwen2 folder with a class of its own, which normalises to NFC
    # whatever the file says; so that all readers agree, the file says so too.
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in CONTROL_TOKENS]
    )
    return tokenizer


def save_tokenizer(folder: Path, *, context_limit: int, alphabet: str | None = None) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template into `folder`.

    Of the byte tokenizer, or of an alphabet's.
    """
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=byte_tokenizer() if alphabet is None else alphabet_tokenizer(alphabet),
        eos_token=END,
        pad_token=PAD,
        # That class adds an <|endoftext|> beyond the vocabulary unless another token is named.
        unk_token=PAD,
        chat_template=CHAT_TEMPLATE if alphabet is None else ALPHABET_TEMPLATE,
        model_max_length=context_limit,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    # transformers 5 writes a class name that 4 does not know; both read this one.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _byte_letters() -> list[str]:
    """The printable letter that the ByteLevel parts use for each byte, in byte order.

    Printable bytes of Latin-1 stand for themselves, the others for the letters from U+0100 on
    (Radford et al. 2019, `bytes_to_unicode`).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
