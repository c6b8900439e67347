"""Checkpoints with a head of their own: a body of any supported kind, and linear layers on top.

The body is loaded by the configuration's model type, never by the class that `architectures` or
`auto_map` name: PRM authors ship such classes as remote code, which breaks with each release of
transformers and may do anything. The head is read from the checkpoint by the recipe's names and
shapes. Nothing of it may lack, be of another shape or be left over: a head made up by a loader, or
a language model's head read as a score, gives numbers that look right.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from prm.engine.loading import load_weights, read_config
from prm.engine.model import CausalLM, EngineModel
from prm.errors import ModelFolderError
from prm.families import FAMILIES
from prm.families.base import HeadLayout
from prm.manifest import ModelVersion, PolicyManifest
from prm.weights import StoredTensor, stored_tensors

# A language model's head may lie beside a PRM's own; it is never read.
_LANGUAGE_HEADS = ("lm_head.", "embed_out.")


class HeadModel(EngineModel):
    """A body and its own head: hidden states in, the head's raw outputs out.

    The head stays in float32 whatever the body's dtype: a step's score hangs on one row of it, and
    its cost is nothing beside the body's.
    """

    def __init__(
        self, body: PreTrainedModel, layers: Sequence[tuple[Tensor, Tensor | None]]
    ) -> None:
        super().__init__(body)
        self._layers = [
            (weight.to(self.device), None if bias is None else bias.to(self.device))
            for weight, bias in layers
        ]

    @classmethod
    def load(
        cls,
        folder: Path,
        layout: HeadLayout,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> "HeadModel":
        """Load safetensors weights, without remote code and without a network.

        Raises ModelFolderError for an architecture that would be computed wrongly here, and for a
        head that is not laid out this way, with the tensor's name, its shape and the wanted one.
        """
        config = read_config(folder)
        shapes = layout.shapes(int(config.hidden_size))
        stored = {
            name: tensor
            for name, tensor in stored_tensors(folder).items()
            if not name.startswith(_LANGUAGE_HEADS)
        }
        _check_head(folder, shapes, stored)
        body, left_over = load_weights(AutoModel, folder, config, device=device, dtype=dtype)
        for name in sorted(left_over - shapes.keys()):
            if name in stored:
                raise ModelFolderError(
                    folder,
                    f"the weights hold {name} {list(stored[name].shape)}, which is neither of a "
                    f"{type(body).__name__} nor of the recipe's head ({_listed(shapes)})",
                )
        tensors = {name: read_tensor(stored[name].path, name) for name in shapes}
        return cls(
            body,
            [
                (tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
                for name in layout.layer_names
            ],
        )

    @torch.inference_mode()
    def head_values(
        self, hidden: Float[Tensor, "n size"], labels: Sequence[int] = ()
    ) -> Float[Tensor, "n outputs"]:
        """See `EngineModel.head_values`: all outputs, ReLU between the layers."""
        assert not labels, "a head of its own has outputs, no vocabulary"
        values = hidden.float()
        for number, (weight, bias) in enumerate(self._layers):
            values = F.linear(F.relu(values) if number else values, weight, bias)
        return values

    def target_logprobs(
        self, hidden: Float[Tensor, "n size"], targets: Int[Tensor, "n"]
    ) -> Float[Tensor, "n"]:
        """See `LogprobRead.raw`: of a single layer with an output per id, that of each target.

        A row of the head per target: no [tokens, vocabulary] tensor is made.
        """
        ((weight, bias),) = self._layers
        values = (hidden.float() * weight[targets]).sum(-1)
        return values if bias is None else values + bias[targets]


def load_model(
    version: ModelVersion, *, device: str = "cpu", dtype: torch.dtype | None = None
) -> EngineModel:
    """A version's model, of the class that its family reads. Raises ModelFolderError."""
    layout = head_layout(version)
    model: EngineModel
    if layout is None:
        model = CausalLM.load(version.folder, device=device, dtype=dtype)
    else:
        model = HeadModel.load(version.folder, layout, device=device, dtype=dtype)
    model.fuse()
    return model


def head_layout(version: ModelVersion) -> HeadLayout | None:
    """Where a version keeps a head of its own, or None for the vocabulary's."""
    if isinstance(version.manifest, PolicyManifest):
        return None
    family = FAMILIES[version.manifest.family]
    return family.head(family.recipe_of(version))


def _check_head(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredTensor]
) -> None:
    for name, wanted in shapes.items():
        if name not in stored:
            raise ModelFolderError(
                folder,
                f"the weights lack {name} {list(wanted)} of the recipe's head; a checkpoint "
                "without it is another kind of model, and any score read off it would be made up",
            )
        if (found := stored[name].shape) != wanted:
            raise ModelFolderError(
                folder,
                f"{name} has the shape {list(found)}, and the recipe's head wants {list(wanted)}",
            )


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a safetensors file, in float32."""
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor.float()
