"""Where the authors' evaluation script of implicit PRMs cuts a response into steps.

PRIME-RL/ImplicitPRM, `eval/prm_eval_utils.py`, and the EurusPRM cards. Published numbers were
computed this way, so it can be had; it is not where the steps end. The whole chat is rendered with
its end of turn and tokenised as one string. So is the chat of every prefix: its text is stripped,
Llama's end-of-turn token is cut off where it stands (Qwen's is not), a blank line is appended, and
with `len` tokens it ends at index `len − 2` of the log-probs, which is token `len − 1`:

* counted from: one or two tokens of the assistant's header before the response;
* an interior step takes in the blank line behind it, and with Qwen's template the first token of
  the next step, which stands where the prefix has its end of turn;
* the last step takes in the end-of-turn token.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput
from prm.families.reading import Reading
from prm.types import Message

# What the script cuts off a prefix, by its text, whichever model it runs.
_LLAMA_HEADER = "<|start_header_id|>assistant<|end_header_id|>"
_LLAMA_END = "<|eot_id|>"
# Every prefix is tokenised from its start: steps × tokens, a few seconds' worth at most.
_MOST_WORK = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPlaces:
    """The chat's ids up to what counts; what counts begins at `first`.

    `ends[k]` counts the tokens from `first` to step k's end; `offsets` index the reading's text.
    """

    ids: tuple[int, ...]
    first: int
    ends: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


def place_as_published(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    reading: Reading,
    check_length: Callable[[int], None],
) -> PublishedPlaces:
    """The script's tokens and positions. Raises InvalidInput where it would index past the end."""
    chat = _render(tokenizer, messages, reading.text)
    whole = tokenizer.encode_marked(chat)
    check_length(len(whole.ids))
    if (work := len(whole.ids) * len(reading.step_ends)) > _MOST_WORK:
        raise InvalidInput(
            f"reference_compat tokenises the item once per step: {len(reading.step_ends)} steps "
            f"of {len(whole.ids)} tokens in all are {work}, and {_MOST_WORK} is the most; "
            "send fewer steps, or leave it out"
        )
    prefixes = _prefixes(tokenizer, messages, reading)
    lengths = [len(tokenizer.encode_markup(prefix)) for prefix in prefixes]
    first = lengths[0] - 2
    if first < 1 or lengths[-1] > len(whole.ids) or lengths != sorted(lengths):
        raise InvalidInput(
            f"reference_compat: the script's positions {lengths} do not lie in order within "
            f"{len(whole.ids)} tokens; score this item without it"
        )
    begin = _begin(tokenizer, messages, reading, chat)
    counted = whole.char_offsets[first : lengths[-1]]
    return PublishedPlaces(
        ids=whole.ids[: lengths[-1]],
        first=first,
        ends=tuple(length - first for length in lengths[1:]),
        offsets=tuple((max(0, start - begin), max(0, end - begin)) for start, end in counted),
    )


def _prefixes(
    tokenizer: ChatTokenizer, messages: Sequence[Message], reading: Reading
) -> Iterator[str]:
    """The chats that the script tokenises: with no step, with the first, … with all."""
    last = len(reading.step_ends)
    for number, end in enumerate((0, *reading.step_ends)):
        chat = _render(tokenizer, messages, reading.text[:end]).strip()
        if number < last:
            chat = chat.removesuffix(_LLAMA_HEADER).removesuffix(_LLAMA_END)
        yield chat + "\n\n" if 0 < number < last else chat


def _render(tokenizer: ChatTokenizer, messages: Sequence[Message], response: str) -> str:
    turns = (*messages, Message(role="assistant", content=response))
    return tokenizer.render(turns, add_generation_prompt=False)


def _begin(
    tokenizer: ChatTokenizer, messages: Sequence[Message], reading: Reading, chat: str
) -> int:
    """Where the reading's text stands in the chat; a template may have stripped it."""
    head = tokenizer.render(messages, add_generation_prompt=True)
    stripped = reading.text.lstrip()
    found = chat.find(stripped.rstrip(), len(head) if chat.startswith(head) else 0)
    if found < 0:
        raise InvalidInput(
            "reference_compat: the chat template rewrites the response; score it without"
        )
    return found - (len(reading.text) - len(stripped))
