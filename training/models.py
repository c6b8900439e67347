"""A causal language model whose weights train, and from which the engine samples as it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from prm.engine.attention import WholeSequences
from prm.engine.loading import load_weights, read_config
from prm.engine.model import CausalLM
from prm.errors import ModelFolderError
from training.data import Example
from training.token_logprobs import token_entropies, token_logprobs


class TrainedLM:
    """Weights with gradients, in packed batches: no token of padding is ever multiplied.

    `engine` is the same tensors as the engine sees them: what it samples after an optimizer step,
    it samples from the new weights, and its log-probs are the trainer's.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.engine = CausalLM(model)
        self._body: nn.Module = getattr(model, model.base_model_prefix)

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "TrainedLM":
        """The model of a folder: safetensors, and exactly a causal language model's tensors.

        Raises ModelFolderError, as `CausalLM.load` does.
        """
        model, left_over = load_weights(
            AutoModelForCausalLM, folder, read_config(folder), device=device, dtype=dtype
        )
        if left_over:
            raise ModelFolderError(
                folder,
                f"the weights hold {', '.join(sorted(left_over)[:3])}, which a "
                f"{type(model).__name__} has no place for",
            )
        return cls(model)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights that train."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def freeze(self) -> "TrainedLM":
        """No gradients any more: a reference model."""
        self.model.requires_grad_(False)
        return self

    def logprobs(
        self, examples: Sequence[Example], *, temperature: float = 1.0
    ) -> Float[Tensor, "rows time"]:
        """log p of each response token; see `forward`."""
        return self.forward(examples, temperature=temperature).logprobs

    def forward(
        self,
        examples: Sequence[Example],
        *,
        temperature: float = 1.0,
        with_entropies: bool = False,
    ) -> "Found":
        """Log-probs of each response token with gradients, of softmax(logits / temperature).

        Column t is the response's token t, whatever the prompt's length; 0 behind a response's
        end. The last token of an example is predicted and not read.
        """
        device = self.model.device
        lengths = [len(example.ids) - 1 for example in examples]
        plan = WholeSequences(lengths, device)
        packed = torch.tensor([token for e in examples for token in e.ids[:-1]], device=device)
        output = self._body(
            input_ids=packed[None], position_ids=plan.position_ids, use_cache=False, plan=plan
        )
        sources, targets, begin = list[int](), list[int](), 0
        for example, length in zip(examples, lengths, strict=True):
            sources.extend(range(begin + example.first - 1, begin + length))
            targets.extend(example.ids[example.first :])
            begin += length
        hidden = output.last_hidden_state[0].index_select(0, torch.tensor(sources, device=device))
        if temperature != 1.0:
            hidden = hidden / temperature
        head = self.engine.head
        mask = response_mask(examples, device)
        return Found(
            logprobs=_rows(mask, token_logprobs(hidden, head, torch.tensor(targets).to(device))),
            entropies=_rows(mask, token_entropies(hidden, head)) if with_entropies else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """What a forward says of the response tokens, float32; entropies are of the distributions that
    the tokens were drawn from."""

    logprobs: Float[Tensor, "rows time"]
    entropies: Float[Tensor, "rows time"] | None


def response_mask(
    examples: Sequence[Example], device: torch.device | str = "cpu"
) -> Bool[Tensor, "rows time"]:
    """Which columns are response tokens, as in `TrainedLM.logprobs`; the end token is one."""
    lengths = torch.tensor([len(e.ids) - e.first for e in examples], device=device)
    return torch.arange(int(lengths.max()), device=device) < lengths[:, None]


def _rows(mask: Bool[Tensor, "rows time"], values: Float[Tensor, "n"]) -> Tensor:
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
