"""The wire of a policy server: what is asked of it, and the pieces that it answers in.

SGLang's names for the same things (`matched_stop`, `text`) are those of its source in 2026; vLLM
0.32 is what the tests run.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import AliasChoices, BaseModel, Field

from prm.backends.http import Failure
from search.generator import GenerateParams

# An event per token costs this process 20 µs a token, one per 8 tokens 4 µs (64 at once). vLLM
# sends the last tokens of a text at once, so only a deadline can lose some: at most 7 a text.
STREAM_INTERVAL = 8


class Prompt(BaseModel):
    """Token ids of a text, and how many the model reads and writes together."""

    tokens: tuple[int, ...]
    max_model_len: int


class Logprobs(BaseModel):
    """The log-prob of each token of a piece."""

    token_logprobs: tuple[float, ...] = ()


class Choice(BaseModel):
    """A piece of the text number `index` of a request; `finish_reason` is set in the last one.

    `token_ids` None: the server does not tell them. `logprobs` where they were asked for.
    `stop_reason` is the stop string, or the stop token, that ended it; None at the end of the
    model's turn.
    """

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = Field(
        default=None, validation_alias=AliasChoices("stop_reason", "matched_stop")
    )


class Usage(BaseModel):
    """Tokens of a request so far, by the server's count."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Chunk(BaseModel):
    """One event of a streamed completion, or all of one that came whole."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Failure | None = None


class Detokenized(BaseModel):
    """The text of some ids."""

    text: str = Field(validation_alias=AliasChoices("prompt", "text"))


def sampling(params: GenerateParams) -> Mapping[str, float]:
    """What is asked for and nothing else: a model's `generation_config.json` would add its own."""
    return {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


def answer_shape(*, is_streamed: bool) -> Mapping[str, Any]:
    """How a completion by ids is to be told: streamed piece by piece, or whole."""
    streamed = {"stream": True, "stream_interval": STREAM_INTERVAL} if is_streamed else {}
    return streamed | {
        "return_token_ids": True,
        "include_stop_str_in_output": True,
        "no_stop_trim": True,
    }
