"""Real tokenizers, tiny, in the layouts of real checkpoints: SentencePiece-like and byte-level."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPACE = "▁"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;=+-*/()'\\$руки"

# The structure of the templates of Llama 3.1 (a dated system turn that is always there, contents
# trimmed) and of Qwen 2.5 (a default system turn where none is given), in words of our own.
LLAMA_TEMPLATE = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nKnowledge until 2023\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""  # noqa: E501
LLAMA_CONTROL = (
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|end_of_text|>",
)
QWEN_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\\nAn assistant helps.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
QWEN_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CORPUS = (
    "Step 1: the ducks lay 16 eggs per day. ки\n\nStep 2: so 16 - 3 = 13 ки\nStep 3: 7 + 2.\n\n",
    "system user assistant\n\nEvaluate what follows. The answer is: 18 + ки\n\n",
) * 4


def sentencepiece_layout(fixed: Mapping[int, str] | None = None, *, size: int = 512) -> Tokenizer:
    """The layout of Llama 2 and Mistral: pieces with `▁`, byte fallback, a BOS before every text.

    `fixed` puts pieces at given ids; the rest of `size` is filled up.
    """
    merges = [("к", "и"), *_chain("Step"), *_chain(SPACE + "Step"), (SPACE, "ки")]
    merges += [(SPACE, sign) for sign in "+-"] + [(SPACE, SPACE), *_chain("the")]
    # `ки` comes first, so that a word that ends in it holds that piece and never the tag's.
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE]
    pieces += [c for c in dict.fromkeys(LETTERS) if c != " "] + ["".join(pair) for pair in merges]
    vocabulary = _placed(list(dict.fromkeys(pieces)), fixed or {}, size)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    _add_control(tokenizer, ("<s>", "</s>"))
    _begin_with(tokenizer, "<s>")
    return tokenizer


def unigram_layout() -> Tokenizer:
    """SentencePiece's other model: pieces with scores, `▁` by a Metaspace, byte fallback."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)] + [(SPACE, -4.0)]
    pieces += [(c, -5.0) for c in dict.fromkeys(LETTERS) if c != " "]
    pieces += [(text, -3.0) for text in (SPACE + "ки", SPACE + "+", SPACE + "-", SPACE + "Step")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    _add_control(tokenizer, ("<s>", "</s>"))
    _begin_with(tokenizer, "<s>")
    return tokenizer


def byte_level_layout(control: Sequence[str], *, size: int = 420, bos: str = "") -> Tokenizer:
    """The layout of Llama 3 and Qwen 2: byte-level BPE, words split off by a pattern."""
    tokenizer = Tokenizer(models.BPE())
    pattern = r"\p{L}+|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern.replace(r"\p{L}+|", "", 1)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    _add_control(tokenizer, control)
    if bos:
        _begin_with(tokenizer, bos)
    return tokenizer


def save_layout(
    tokenizer: Tokenizer, folder: Path, *, template: str | None = None, bos: str = "", eos: str
) -> None:
    """Write the files that readers of a checkpoint look for."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos}
    config |= {"pad_token": eos, "clean_up_tokenization_spaces": False}
    config |= {"bos_token": bos} if bos else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)


def _chain(text: str) -> list[tuple[str, str]]:
    """The merges that build a piece from its left."""
    return [(text[:end], text[end]) for end in range(1, len(text))]


def _placed(pieces: Sequence[str], fixed: Mapping[int, str], size: int) -> dict[str, int]:
    """Ids for the pieces in order, around those that have one already, and fillers to the end."""
    loose = iter([piece for piece in pieces if piece not in fixed.values()])
    ids = (fixed.get(i) or next(loose, f"<filler {i}>") for i in range(size))
    return {piece: i for i, piece in enumerate(ids)}


def _add_control(tokenizer: Tokenizer, control: Sequence[str]) -> None:
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in control]
    )


def _begin_with(tokenizer: Tokenizer, bos: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
