"""Log-probability of given next tokens, in float32, without a [tokens, vocab] tensor.

Only the target's logit and the log-sum-exp of its row are wanted, so the rows are made a chunk at
a time and dropped: memory is `CHUNK_FLOATS` numbers whatever the batch and the vocabulary.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# 2^23 floats are 32 MB: 8,192 rows for a byte vocabulary, 55 rows for Qwen's 152,000 tokens.
CHUNK_FLOATS = 1 << 23


def target_logprobs(
    hidden: Float[Tensor, "tokens size"],
    head: Float[Tensor, "vocab size"],
    targets: Int[Tensor, "tokens"],
    *,
    chunk_floats: int = CHUNK_FLOATS,
) -> Float[Tensor, "tokens"]:
    """log softmax(head · hidden)[target] for every token, float32."""
    rows = max(1, chunk_floats // head.shape[0])
    result = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(targets), rows):
        logits = (hidden[start : start + rows] @ head.T).float()
        chosen = logits.gather(1, targets[start : start + rows, None]).squeeze(1)
        result[start : start + rows] = chosen - logits.logsumexp(-1)
    return result
