"""Log-probabilities of response tokens, with gradients: what every loss here is a function of."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.data import Batch


def response_logprobs(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "batch time"]:
    """log p(ids[b, t] | ids[b, :t]) where `is_target`, 0 elsewhere.

    Logits are made for response tokens alone: the prompt's are never wanted.
    """
    body: nn.Module = getattr(model, model.base_model_prefix)
    hidden = body(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
    wanted = batch.is_target[:, 1:]
    chosen = torch.log_softmax(model.lm_head(hidden[wanted]), dim=-1)
    targets = batch.ids[:, 1:][wanted]
    result = chosen.new_zeros(batch.ids.shape)
    result[batch.is_target] = chosen.gather(1, targets[:, None]).squeeze(1)
    return result
