"""From packed tokens to the log-probs of some of them: the module that is run, kept and sharded.

precision "bfloat16"        products in bfloat16 (autocast), weights and moments in float32; the
                            head, the log-probs and the loss in float32 as well
activation_checkpointing    of each layer its input is kept for the backward, and the rest
                            computed again: a third more computing, a layer's activations at a
                            time (Chen et al., arXiv 1604.06174)
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from prm.errors import InvalidInput
from training.branches import Branches
from training.spec import Precision
from training.token_logprobs import token_entropies, token_logprobs


class PackedReading(nn.Module):
    """A causal language model, body and head, over tokens side by side."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        precision: Precision = "float32",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        if activation_checkpointing:
            for layer in self.layers:
                layer.forward = _computed_again(layer.forward)

    @property
    def layers(self) -> list[nn.Module]:
        """The model's layers: what is checkpointed, and sharded, one by one.

        Raises InvalidInput for a model whose layers are not known.
        """
        found = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if not found:
            raise InvalidInput(
                f"a {type(self.model).__name__} names no layers, one by one of which activations "
                "could be checkpointed and weights sharded; set activation_checkpointing to false "
                "and take one process",
                param="activation_checkpointing",
            )
        return list[nn.Module](found)

    def autocast(self) -> torch.autocast:
        """The precision of everything but the head."""
        kind = self.model.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16")

    def forward(
        self, plan: Branches, temperature: float, with_entropies: bool
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"] | None]:
        """log p of the plan's targets, and entropies of the distributions that they are from."""
        body: nn.Module = getattr(self.model, self.model.base_model_prefix)
        with self.autocast():
            output = body(
                input_ids=plan.ids[None],
                position_ids=plan.position_ids,
                use_cache=False,
                plan=plan,
            )
        hidden: Tensor = output.last_hidden_state[0].index_select(0, plan.sources)
        if self.precision == "bfloat16":
            hidden = hidden.float()
        if temperature != 1.0:
            hidden = hidden / temperature
        head: Tensor = self.model.lm_head.weight
        logprobs = token_logprobs(hidden, head, plan.targets)
        return logprobs, token_entropies(hidden, head) if with_entropies else None


def _computed_again(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's forward whose backward begins with another one."""

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
