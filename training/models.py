"""A causal language model whose weights train, and from which the engine samples as it is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from prm.engine.loading import load_weights, read_config
from prm.engine.model import CausalLM
from prm.errors import ModelFolderError
from training.branches import Branches
from training.data import Example
from training.ranks import ALONE, Ranks
from training.reading import PackedReading
from training.spec import Precision

_NOBODY = Example(ids=(0, 0), first=1)


class TrainedLM:
    """Weights with gradients, in packed batches: no token of padding is ever multiplied.

    `engine` is the same tensors as the engine sees them: what it samples after an optimizer step,
    it samples from the new weights, and its log-probs are the trainer's. With several ranks, which
    have a part of each tensor, it works inside of `whole`.
    """

    def __init__(self, reading: PackedReading, ranks: Ranks = ALONE) -> None:
        self.model = reading.model
        self.reading = reading
        self.ranks = ranks
        self.engine = CausalLM(self.model)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        precision: Precision = "float32",
        activation_checkpointing: bool = False,
        ranks: Ranks = ALONE,
    ) -> "TrainedLM":
        """The model of a folder: safetensors, and exactly a causal language model's tensors.

        `dtype` is that of the weights, `precision` that of products: see `PackedReading`.
        Raises ModelFolderError, as `CausalLM.load` does.
        """
        model = load_causal(folder, device=device, dtype=dtype)
        reading = PackedReading(
            model, precision=precision, activation_checkpointing=activation_checkpointing
        )
        return cls(reading, ranks).spread()

    def spread(self) -> "TrainedLM":
        """Leave each rank its part of the weights: before anything else is done with them."""
        self.ranks.shard(self.reading, self.reading.layers)
        if self.ranks.count > 1:
            # Its first forward makes the outermost module FSDP's root.
            with torch.no_grad():
                self.forward([])
        return self

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights that train."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def freeze(self) -> "TrainedLM":
        """No gradients any more: a reference model."""
        self.model.requires_grad_(False)
        return self

    @contextmanager
    def whole(self) -> Iterator[CausalLM]:
        """The engine's view, in the weights' own precision; nobody trains inside.

        Each rank has all weights there, for as long as it takes.
        """
        with self.ranks.whole(self.reading):
            self.engine.head = self.model.lm_head.weight
            yield self.engine

    def save(self, folder: Path) -> None:
        """The model as transformers saves it; see `saved_tensors`."""
        with self.ranks.whole(self.reading):
            if self.ranks.index == 0:
                self.model.save_pretrained(folder, state_dict=self.saved_tensors())
        self.ranks.wait()

    def saved_tensors(self) -> dict[str, Tensor]:
        """Every weight by its name, tied ones by each of theirs."""
        weights = self.model.named_parameters(remove_duplicate=False)
        return {name: weight.detach() for name, weight in weights}

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
        end. The last token of an example is predicted and not read, and a prompt that several
        examples share is read once. Without examples something is read for nobody: ranks gather
        weights together, and one of them may have no rows left.
        """
        read = examples or [_NOBODY]
        plan = Branches(read, self.model.device)
        logprobs, entropies = self.reading(plan, temperature, with_entropies)
        mask, count = response_mask(read, self.model.device), len(examples)
        return Found(
            logprobs=_rows(mask, logprobs)[:count],
            entropies=None if entropies is None else _rows(mask, entropies)[:count],
        )


def load_causal(folder: Path, *, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A folder's causal language model. Raises ModelFolderError for tensors that it has not."""
    model, left_over = load_weights(
        AutoModelForCausalLM, folder, read_config(folder), device=device, dtype=dtype
    )
    if left_over:
        raise ModelFolderError(
            folder,
            f"the weights hold {', '.join(sorted(left_over)[:3])}, which a "
            f"{type(model).__name__} has no place for",
        )
    return model


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
