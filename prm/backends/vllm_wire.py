"""The three questions that a vLLM server is asked, and how its answers become values.

| read | route | the server |
| --- | --- | --- |
| `LogprobRead` | `/v1/completions`, `prompt_logprobs: 0` | generates; no flag needed |
| `HeadRead` with labels | `/v1/completions`, `logprob_token_ids` | generates; no flag needed |
| `HeadRead` without | `/pooling`, task `token_classify` | pools *all* tokens, see `Head` |

Checked against the source of vLLM 0.32 and its server on a CPU. Token ids go out, so nothing is
tokenised twice. An answer that does not have the asked shape raises `WrongAnswer`: a server with
other flags must not become a wrong score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, FiniteFloat

from prm.errors import InvalidInput
from prm.families.base import HeadRead, LogprobRead, Read

# vLLM writes -inf so, which JSON cannot (`clamp_prompt_logprobs`).
MINUS_INFINITY = -9999.0


class WrongAnswer(Exception):
    """What the server returned instead of what it was asked for, as the rest of a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Ids to send, and the positions in them of which something is asked."""

    ids: tuple[int, ...]
    positions: Sequence[int]


class Question(Protocol):
    """A kind of question. Equal ones about one model share requests."""

    route: ClassVar[str]
    # Tokens that the server writes behind a prompt: they count towards its `--max-model-len`.
    written: ClassVar[int]

    def prompts(self, read: Any) -> list[Prompt]:
        """What must be sent for this read; the values of its prompts are its values."""
        ...

    def body(self, model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """One request for these prompts."""
        ...

    def values(self, answer: bytes, prompts: Sequence[Prompt]) -> list[list[float]]:
        """Values of each prompt. Raises WrongAnswer, pydantic.ValidationError."""
        ...


@dataclass(frozen=True, slots=True)
class Logprobs:
    """log p of the prompt's own tokens. `prompt_logprobs: 0` returns no others beside them.

    The first token has none. One token is written and thrown away: vLLM refuses to write none.
    Needs `--logprobs-mode raw_logprobs`, which is the default.
    """

    route: ClassVar[str] = "/v1/completions"
    written: ClassVar[int] = 1

    def prompts(self, read: LogprobRead) -> list[Prompt]:
        """See `Question.prompts`."""
        assert read.first >= 1, "the first token has no log-prob"
        positions = range(read.first, len(read.ids))
        return [Prompt(ids=read.ids, positions=positions)] if positions else []

    def body(self, model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """See `Question.body`."""
        return _completion(model, prompts) | {"prompt_logprobs": 0}

    def values(self, answer: bytes, prompts: Sequence[Prompt]) -> list[list[float]]:
        """See `Question.values`."""
        choices = _in_order(_Completion.model_validate_json(answer).choices, len(prompts))
        return [
            _own_logprobs(choice, prompt) for choice, prompt in zip(choices, prompts, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Labels:
    """What a causal LM's head says of a few ids after a position: logits less one constant.

    They come as log-probs, that is less the log-sum-exp of that position's logits; a softmax over
    the labels, or a difference of two, is the same of both. One prompt per position, cut behind it:
    the server's prefix cache, on by default, makes them cost about one forward together.
    """

    labels: tuple[int, ...]
    route: ClassVar[str] = "/v1/completions"
    written: ClassVar[int] = 1

    def prompts(self, read: HeadRead) -> list[Prompt]:
        """See `Question.prompts`."""
        return [
            Prompt(ids=read.ids[: position + 1], positions=(position,))
            for position in read.positions
        ]

    def body(self, model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """See `Question.body`."""
        return _completion(model, prompts) | {
            "logprobs": len(self.labels),
            "logprob_token_ids": self.labels,
            "return_tokens_as_token_ids": True,
        }

    def values(self, answer: bytes, prompts: Sequence[Prompt]) -> list[list[float]]:
        """See `Question.values`."""
        choices = _in_order(_Completion.model_validate_json(answer).choices, len(prompts))
        return [self._logprobs(choice) for choice in choices]

    def _logprobs(self, choice: "_Choice") -> list[float]:
        found = choice.logprobs.top_logprobs[0] if choice.logprobs else {}
        values = [found.get(f"token_id:{label}", MINUS_INFINITY) for label in self.labels]
        if MINUS_INFINITY in values:
            raise WrongAnswer(f"no log-probs of the labels {list(self.labels)}")
        return values


@dataclass(frozen=True, slots=True)
class Head:
    """The raw outputs of a checkpoint's own head, before any activation.

    Architectures that vLLM loads, and the flag each needs:

    - `…ForTokenClassification` of any causal body (`score.weight`, `score.bias`), and
      `Qwen2ForRewardModel` (`score.0`, `score.2`, one output): none;
    - `Qwen2ForProcessRewardModel` (the same, two outputs):
      `--pooler-config '{"tok_pooling_type": "ALL"}'`, as it pools the `<extra_0>` tokens otherwise;
    - `…ForSequenceClassification`: `--pooler-config '{"task": "token_classify"}'`.

    Rows of some tokens are refused, as they do not tell which tokens they are of. The head computes
    in float32 whatever the dtype of the model.
    """

    width: int
    route: ClassVar[str] = "/pooling"
    written: ClassVar[int] = 0

    def prompts(self, read: HeadRead) -> list[Prompt]:
        """See `Question.prompts`."""
        return [Prompt(ids=read.ids, positions=read.positions)] if read.positions else []

    def body(self, model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """See `Question.body`."""
        return {
            "model": model,
            "input": [prompt.ids for prompt in prompts],
            "add_special_tokens": False,
            "task": "token_classify",
            "use_activation": False,
        }

    def values(self, answer: bytes, prompts: Sequence[Prompt]) -> list[list[float]]:
        """See `Question.values`."""
        pooled = _in_order(_Pooling.model_validate_json(answer).data, len(prompts))
        return [self._rows(item.data, prompt) for item, prompt in zip(pooled, prompts, strict=True)]

    def _rows(self, rows: list[list[float]], prompt: Prompt) -> list[float]:
        if len(rows) != len(prompt.ids):
            raise WrongAnswer(
                f"{len(rows)} rows for {len(prompt.ids)} tokens; start it with "
                """--pooler-config '{"tok_pooling_type": "ALL"}'"""
            )
        if any(len(row) != self.width for row in rows):
            raise WrongAnswer(
                f"{len(rows[0])} numbers per token, where the model's head has {self.width}"
            )
        return [value for position in prompt.positions for value in rows[position]]


def question(read: Read) -> Question:
    """What to ask for this read."""
    match read:
        case LogprobRead(raw=True):
            raise InvalidInput(
                "a head over the vocabulary is read by Rung's own engine alone: vLLM would send "
                "all of its outputs for every token; take this PRM out of scoring_urls",
                param="model",
            )
        case LogprobRead():
            return Logprobs()
        case HeadRead(labels=()):
            return Head(read.width)
        case HeadRead():
            return Labels(read.labels)


class _Indexed(BaseModel):
    index: int


class _Logprob(BaseModel):
    logprob: FiniteFloat


class _Sampled(BaseModel):
    top_logprobs: list[Mapping[str, FiniteFloat]]


class _Choice(_Indexed):
    prompt_logprobs: list[Mapping[str, _Logprob] | None] | None = None
    logprobs: _Sampled | None = None


class _Completion(BaseModel):
    choices: list[_Choice]


class _Pooled(_Indexed):
    data: list[list[FiniteFloat]]


class _Pooling(BaseModel):
    data: list[_Pooled]


def _completion(model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": [prompt.ids for prompt in prompts],
        "add_special_tokens": False,
        "max_tokens": 1,
        "temperature": 0,
    }


def _own_logprobs(choice: _Choice, prompt: Prompt) -> list[float]:
    """The log-prob of each token asked for, found under the token's own id."""
    rows = choice.prompt_logprobs or []
    if len(rows) != len(prompt.ids):
        raise WrongAnswer(f"{len(rows)} log-probs for {len(prompt.ids)} tokens")
    values = []
    for position in prompt.positions:
        found = (rows[position] or {}).get(str(prompt.ids[position]))
        if found is None:
            raise WrongAnswer(f"no log-prob of token {position}, but of others")
        if not MINUS_INFINITY < found.logprob <= 0:
            raise WrongAnswer(f"{found.logprob} as the log-prob of token {position}")
        values.append(found.logprob)
    return values


_Item = Any


def _in_order(items: Sequence[_Item], count: int) -> list[_Item]:
    ordered = sorted(items, key=lambda item: item.index)
    if [item.index for item in ordered] != list(range(count)):
        raise WrongAnswer(f"{len(items)} answers to {count} prompts")
    return ordered
