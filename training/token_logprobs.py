"""Log-probabilities of given tokens with gradients, and never a [tokens, vocab] tensor.

Forward, they are the engine's, tile by tile (`prm/engine/logprobs.py`): what a trainer computes of
a rollout is what the engine's Reader computes of it, to the last bit. Backward, a tile of logits is
made anew and its gradient, g · (one-hot − softmax), multiplied into those of hidden states and head
at once. `F.linear_cross_entropy` of torch 2.13, which keeps no logits either, took fifteen times as
long as the plain product on a CPU (300 tokens, 32,000 entries).
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prm.engine.logprobs import float_logits, target_logits, tile_of

# Logits of one piece of `token_entropies`: 64 MB.
ENTROPY_ENTRIES = 1 << 24


def token_logprobs(
    hidden: Float[Tensor, "tokens size"],
    head: Float[Tensor, "vocab size"],
    targets: Int[Tensor, "tokens"],
) -> Float[Tensor, "tokens"]:
    """log softmax(head · hidden)[target] for every token, float32; differentiable once."""
    found: Tensor = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, head.to(hidden.dtype), targets
    )
    return found


def token_entropies(
    hidden: Float[Tensor, "tokens size"], head: Float[Tensor, "vocab size"]
) -> Float[Tensor, "tokens"]:
    """−Σ p log p of softmax(head · hidden) for every token, float32, with gradients.

    Logits are made a piece at a time, and anew for the backward.
    """
    rows = max(1, ENTROPY_ENTRIES // len(head))
    parts = [
        checkpoint(_entropies, hidden[start : start + rows], head, use_reentrant=False)
        for start in range(0, len(hidden), rows)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _entropies(hidden: Tensor, head: Tensor) -> Tensor:
    logprobs = torch.log_softmax((hidden @ head.to(hidden.dtype).T).float(), -1)
    return -(logprobs.exp() * logprobs).sum(-1)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        chosen, log_sums = target_logits(hidden, head, targets)
        ctx.save_for_backward(hidden, head, targets, log_sums)
        return chosen - log_sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, head, targets, log_sums = ctx.saved_tensors
        of_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        of_head = torch.zeros_like(head, dtype=torch.float32)
        rows, columns = tile_of(hidden, head)
        for start in range(0, len(targets), rows):
            some = slice(start, start + rows)
            for first in range(0, len(head), columns):
                part = slice(first, first + columns)
                of_logits = _of_logits(
                    hidden[some], head[part], targets[some] - first, log_sums[some]
                )
                of_logits *= gradients[0][some, None]
                of_hidden[some] += of_logits @ head[part].float()
                of_head[part] += of_logits.T @ hidden[some].float()
        return of_hidden.to(hidden.dtype), of_head.to(head.dtype), None


def _of_logits(
    hidden: Float[Tensor, "n size"],
    head: Float[Tensor, "columns size"],
    targets: Int[Tensor, "n"],
    log_sums: Float[Tensor, "n"],
) -> Float[Tensor, "n columns"]:
    """One-hot − softmax within these columns; a target outside of them is in none."""
    found = float_logits(hidden, head).sub_(log_sums[:, None]).exp_().neg_()
    here = ((targets >= 0) & (targets < len(head))).nonzero().squeeze(1)
    found[here, targets[here]] += 1
    return found
