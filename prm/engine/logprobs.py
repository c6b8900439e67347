"""Log-probability of given next tokens, in float32, without a [tokens, vocab] tensor.

Only the target's logit and the log-sum-exp of its row are wanted, so logits are made a tile of
tokens times vocabulary at a time and dropped: memory is one tile, whatever the batch and the
vocabulary.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Tokens and vocabulary entries of a tile. On a CPU a tile of 4 MB stays in the cache between the
# product and the sums over it: a third faster than whole rows of Qwen's 151,936 entries. A GPU
# wants larger ones to be busy.
TILES = {"cpu": (256, 4096), "cuda": (4096, 16384)}


def target_logprobs(
    hidden: Float[Tensor, "tokens size"],
    head: Float[Tensor, "vocab size"],
    targets: Int[Tensor, "tokens"],
    *,
    tile: tuple[int, int] | None = None,
) -> Float[Tensor, "tokens"]:
    """log softmax(head · hidden)[target] for every token, float32."""
    chosen, log_sums = target_logits(hidden, head, targets, tile=tile)
    return chosen - log_sums


def target_logits(
    hidden: Float[Tensor, "tokens size"],
    head: Float[Tensor, "vocab size"],
    targets: Int[Tensor, "tokens"],
    *,
    tile: tuple[int, int] | None = None,
) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens"]]:
    """The target's logit and the log-sum-exp of all logits, for every token, float32."""
    rows, columns = tile_of(hidden, head, tile)
    chosen = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    log_sums = torch.empty_like(chosen)
    for start in range(0, len(targets), rows):
        place = slice(start, start + rows)
        chosen[place], log_sums[place] = _of_rows(hidden[place], head, targets[place], columns)
    return chosen, log_sums


def tile_of(
    hidden: Float[Tensor, "tokens size"],
    head: Float[Tensor, "vocab size"],
    tile: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Tokens and vocabulary entries of a tile: as asked for, or as the device likes it."""
    most_rows, most_columns = tile or TILES.get(hidden.device.type, TILES["cpu"])
    columns = min(most_columns, head.shape[0])
    # A small vocabulary leaves room for more tokens.
    return max(most_rows, most_rows * most_columns // columns), columns


def float_logits(
    hidden: Float[Tensor, "n size"], head: Float[Tensor, "vocab size"]
) -> Float[Tensor, "n vocab"]:
    """Logits in float32. On CUDA they are never rounded to the weights' lower precision."""
    return _logits(hidden, head).float()


def _logits(
    hidden: Float[Tensor, "n size"], head: Float[Tensor, "vocab size"]
) -> Float[Tensor, "n vocab"]:
    """Logits, in float32 or in the weights' lower precision, by the fastest product there is."""
    if hidden.device.type == "cuda" and hidden.dtype != torch.float32:
        return torch.mm(hidden, head.T, out_dtype=torch.float32)
    if hidden.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        # oneDNN, also in float32, where torch.mm takes MKL: a fifth faster on AMD's processors.
        found: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, head, None, "none", [], "")
        return found
    return hidden @ head.T


def _of_rows(
    hidden: Float[Tensor, "n size"],
    head: Float[Tensor, "vocab size"],
    targets: Int[Tensor, "n"],
    columns: int,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    chosen = torch.zeros(len(targets), dtype=torch.float32, device=hidden.device)
    parts = []
    for first in range(0, head.shape[0], columns):
        logits = _logits(hidden, head[first : first + columns])
        place = targets - first
        is_here = (place >= 0) & (place < logits.shape[1])
        found = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
        chosen = torch.where(is_here, found.float(), chosen)
        # The log-sum-exp from the largest logit and its log-prob, which is small, hence exact: one
        # pass in float32 over what may be a lower precision, at half the cost of exp and sum.
        logprobs = torch.log_softmax(logits, -1, dtype=torch.float32)
        parts.append(logits.amax(-1).float() - logprobs.amax(-1))
    return chosen, torch.stack(parts).logsumexp(0)
