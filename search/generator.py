"""What search asks of whatever writes steps: an engine here, or a policy server over HTTP."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from prm.types import Message
from search.types import Prefix

EndedBy = Literal["stop", "separator", "eos", "length", "deadline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """Continue `prefix` once. `number` tells the answers apart, `seed` makes them repeatable.

    `max_tokens` bounds the new text; None leaves it to the call's own bound.
    """

    number: int
    prefix: Prefix
    seed: int
    max_tokens: int | None = None

    def limit(self, params: "GenerateParams") -> int:
        """Tokens that may be written for this want."""
        return params.max_tokens if self.max_tokens is None else self.max_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateParams:
    """Settings shared by all wants of a call.

    `top_k` 0 is all tokens. A `stop` string that ends a text stays in it when it is one of
    `keep_stop`: a step separator belongs to the trajectory, a caller's stop string does not. At
    `seconds` (None: never) what is there so far is returned as it is. Unless it `is_watched`,
    nobody looks at a text before all of them have ended, and they may come together.
    """

    temperature: float
    top_p: float
    max_tokens: int
    top_k: int = 0
    stop: tuple[str, ...] = ()
    keep_stop: tuple[str, ...] = ()
    seconds: float | None = None
    is_watched: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One continuation. `prefix` is the want's prefix with the new text (and ids) appended.

    `ended_by`: a `stop` string, a `separator` (one of `keep_stop`), the end of the model's turn
    (`eos`), `length` (max_tokens or the model's context), or the `deadline`. `tokens` counts the
    new ones, `prompt_tokens` those of the chat before the assistant's turn.
    """

    number: int
    prefix: Prefix
    tokens: int
    prompt_tokens: int
    ended_by: EndedBy


class Generator(Protocol):
    """Writes continuations. `name` is the policy, `version` what answers are stamped with."""

    name: str
    version: str

    def generate(
        self, messages: Sequence[Message], wants: Sequence[Want], params: GenerateParams
    ) -> AsyncGenerator[Written]:
        """Yield one `Written` per want, in the order in which they end.

        Closing the iterator early stops the writing. Raises InvalidInput when the prompt does not
        fit the model, Unavailable when nobody is there to write.
        """
        ...
