"""Text → token ids, without torch: the `tokenizers` library and a sandboxed chat template.

`transformers.AutoTokenizer` does the same in four seconds of imports; a test holds the two equal.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from prm.errors import InvalidInput, ModelFolderError
from prm.files import read_json
from prm.types import Message


@dataclass(frozen=True)
class EncodedText:
    """Token ids, and for each token the half-open character span it stands for."""

    ids: tuple[int, ...]
    char_offsets: tuple[tuple[int, int], ...]


class ChatTokenizer:
    """The tokenizer and chat template of one model folder. Safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        config = read_json(folder / "tokenizer_config.json")
        self._tokenizer = _load_tokenizer(folder / "tokenizer.json")
        # What a caller writes is text: a control token spelt out in it must not become one.
        self._tokenizer.encode_special_tokens = True
        self._with_specials = _load_tokenizer(folder / "tokenizer.json")
        self._specials = {
            str(token.content): token_id
            for token_id, token in self._with_specials.get_added_tokens_decoder().items()
            if token.special
        }
        self._longest_token = max(map(len, self._with_specials.get_vocab()), default=1)
        self._template_variables = {
            name: _token_text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")
        }
        self._config = config
        self._path = folder

    @cached_property
    def _template(self) -> jinja2.Template:
        # As transformers does, but without `strftime_now` (a score must not depend on the date) and
        # without the `generation` tag (it marks text for training).
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_template_error
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(
            value, ensure_ascii=False, indent=indent
        )
        try:
            return environment.from_string(_template_source(self._path, self._config))
        except jinja2.TemplateError as error:
            raise ModelFolderError(
                self._path, f"the chat template does not parse: {error}"
            ) from error

    def least_tokens(self, *texts: str) -> int:
        """A number of tokens that these texts surely have, without tokenising them."""
        return sum(map(len, texts)) // self._longest_token

    @property
    def largest_id(self) -> int:
        """The largest id that any text can give."""
        return max(self._with_specials.get_vocab(with_added_tokens=True).values())

    @cached_property
    def token_texts(self) -> tuple[str, ...]:
        """The text of each id on its own, by id; empty of a control token and of no token at all.

        Of a part of a character it is U+FFFD.
        """
        ids = [[token_id] for token_id in range(self.largest_id + 1)]
        return tuple(self._with_specials.decode_batch(ids, skip_special_tokens=True))

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of the chat up to the point where the assistant starts to write.

        Raises InvalidInput when a message spells out a control token, or the template refuses.
        """
        for position, message in enumerate(messages):
            self.refuse_control_tokens(message.content, param=f"messages[{position}].content")
        return self.encode_markup(self.render(messages, add_generation_prompt=True))

    def refuse_control_tokens(self, text: str, *, param: str) -> None:
        """Raises InvalidInput when the text spells out a control token."""
        for special in self._specials:
            if (at := text.find(special)) >= 0:
                raise InvalidInput(
                    f"the text holds the control token {special!r} at character {at}; "
                    "remove it or write it differently",
                    param=param,
                )

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The chat as the model's template writes it. Raises InvalidInput when it refuses."""
        try:
            return self._template.render(
                messages=[{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._template_variables,
            )
        except jinja2.TemplateError as error:
            raise InvalidInput(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error

    def encode_markup(self, text: str, *, add_special_tokens: bool = False) -> tuple[int, ...]:
        """Ids of text in which control tokens count as such: only for text that we built.

        `add_special_tokens` adds what the tokenizer puts around every text, such as a BOS token.
        """
        return self.encode_marked(text, add_special_tokens=add_special_tokens).ids

    def encode_marked(self, text: str, *, add_special_tokens: bool = False) -> EncodedText:
        """Like `encode_markup`, with the characters of each token; of an added one, none."""
        return _encode(self._with_specials, text, add_special_tokens=add_special_tokens)

    def encode_response(self, response: str) -> EncodedText:
        """Ids and character offsets of what the assistant writes; never yields a control token."""
        return _encode(self._tokenizer, response, add_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        """Id of a vocabulary entry or added token, spelt as the vocabulary spells it; or None."""
        return self._with_specials.token_to_id(token)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of these ids, control tokens left out."""
        return str(self._with_specials.decode(list(ids), skip_special_tokens=True))

    def decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """What these ids add to the text of those before them.

        Not the same as their own text: a Metaspace decoder (Llama 2, Mistral) leaves out the space
        that a text begins with, and that is the space between two words of a text that goes on.
        """
        head, whole = self.decode(before), self.decode([*before, *ids])
        return whole[len(head) :] if whole.startswith(head) else self.decode(ids)

    def decode_stream(self, before: Sequence[int] = ()) -> DecodeStream:
        """State for turning ids into text one at a time, as what they add to those before them."""
        if self.decode(before).endswith("\ufffd"):  # cut in the middle of a character
            before = ()
        return DecodeStream(list(before), skip_special_tokens=True)

    def decode_next(self, stream: DecodeStream, token_id: int) -> str:
        """The text that this id completes; empty in the middle of a multi-byte character."""
        return stream.step(self._with_specials, token_id) or ""

    @property
    def bos_text(self) -> str:
        """The token that begins a text, spelt out; empty where the tokenizer names none."""
        return self._template_variables["bos_token"]

    @cached_property
    def eos_id(self) -> int | None:
        """Id of the token that ends a turn, or None where the tokenizer names none."""
        return self._specials.get(self._template_variables["eos_token"])


def _encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> EncodedText:
    """Raises InvalidInput for text that the vocabulary has no entry for."""
    try:
        encoding = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    # The binding raises a bare Exception, of a vocabulary without an entry for the unknown.
    except Exception as error:
        raise InvalidInput(
            f"the model cannot read this text{_first_unknown(tokenizer, text)}: its vocabulary has "
            "no token for every character; write it in the characters that the model was made for"
        ) from error
    return EncodedText(tuple(encoding.ids), tuple(encoding.offsets))


def _first_unknown(tokenizer: Tokenizer, text: str) -> str:
    for at, character in enumerate(text):
        try:
            tokenizer.encode(character, add_special_tokens=False)
        except Exception:
            return f", at character {at} ({character!r})"
    return ""


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    # The binding raises a bare Exception for a missing and for a broken file alike.
    except Exception as error:
        raise ModelFolderError(path, f"not a readable tokenizer: {error}") from error
    # Left behind by a training run, they would cut texts in silence.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _template_source(folder: Path, config: dict[str, Any]) -> str:
    # transformers 5 writes the template beside the configuration, older ones inside it.
    beside = folder / "chat_template.jinja"
    if beside.exists():
        try:
            return beside.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFolderError(beside, "not readable as UTF-8 text") from error
    inside = config.get("chat_template")
    if isinstance(inside, list):
        inside = {entry.get("name"): entry.get("template") for entry in inside}.get("default")
    if isinstance(inside, str):
        return inside
    raise ModelFolderError(beside, "no chat template, here or in tokenizer_config.json")


def _token_text(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _raise_template_error(message: str) -> None:
    raise jinja2.TemplateError(message)
