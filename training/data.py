"""Token ids of training examples, and batches of them padded on the right."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prm.chat import ChatTokenizer
from prm.types import Message
from training.types import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One chat with its answer: `ids[first:]` are the response's tokens, the end token last.

    Where training wants them: `label` is the outcome label, `reference_logprob` the log-probability
    of the whole response under the frozen reference model.
    """

    ids: tuple[int, ...]
    first: int
    label: float = 0.0
    reference_logprob: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Examples side by side. `is_target[b, t]` says whether `ids[b, t]` is a response token.

    Padding stands on the right, where causal attention lets no real token see it, so that the
    models are run without a padding mask.
    """

    ids: Int[Tensor, "batch time"]
    is_target: Bool[Tensor, "batch time"]
    labels: Float[Tensor, "batch"]
    reference_logprobs: Float[Tensor, "batch"]


def encode_example(
    tokenizer: ChatTokenizer, problem: Problem, response: str, *, label: float = 0.0
) -> Example:
    """The chat in which `response` answers `problem`, ended by the end token."""
    prompt = encode_problem(tokenizer, problem)
    assert tokenizer.eos_id is not None, "training teaches the model to end its turn"
    ids = (*prompt, *tokenizer.encode_response(response).ids, tokenizer.eos_id)
    return Example(ids=ids, first=len(prompt), label=label)


def encode_problem(tokenizer: ChatTokenizer, problem: Problem) -> tuple[int, ...]:
    """The prompt: the problem as a user turn, up to where the model starts to write."""
    return tokenizer.encode_prompt(messages_of(problem))


def messages_of(problem: Problem) -> tuple[Message, ...]:
    """The chat that asks for a problem."""
    return (Message(role="user", content=problem.text),)


def collate(examples: Sequence[Example]) -> Batch:
    """Pad to the longest example."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    is_target = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        is_target[row, example.first : len(example.ids)] = True
    return Batch(
        ids=ids,
        is_target=is_target,
        labels=torch.tensor([example.label for example in examples]),
        reference_logprobs=torch.tensor([example.reference_logprob for example in examples]),
    )


def batches(
    examples: Sequence[Example], batch_size: int, seed: int, *, pool: int = 8
) -> Iterator[Batch]:
    """One pass in random order; examples of like length meet within a pool of batches.

    On the arithmetic task that leaves 5 % padding in place of 25 %.
    """
    rng = random.Random(seed)
    order = rng.sample(range(len(examples)), len(examples))
    for start in range(0, len(order), pool * batch_size):
        chunk = sorted(order[start : start + pool * batch_size], key=lambda i: len(examples[i].ids))
        cuts = list(range(0, len(chunk), batch_size))
        rng.shuffle(cuts)
        for cut in cuts:
            yield collate([examples[i] for i in chunk[cut : cut + batch_size]])
