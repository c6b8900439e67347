"""One set of weights, many models: a base, and LoRA adapters that are on while their model runs.

An implicit PRM that was trained as an adapter is read with its adapter on, and its reference with
all of them off: two models to everyone else, one in memory. The adapters' layers are peft's own
(rank patterns, rsLoRA, DoRA and saved modules are what peft makes of them); which of them is on is
set before every forward of a model, so no read can leave anything behind for the next.

Settings that would be computed wrongly here are refused by name (`prm/adapter.py`).
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from prm.adapter import read_settings
from prm.engine.attention import AttentionPlan
from prm.engine.model import CausalLM, EngineModel
from prm.errors import ModelFolderError
from prm.weights import ADAPTER, ADAPTER_CONFIG

if TYPE_CHECKING:
    from peft import PeftModel


class BaseLM(CausalLM):
    """A causal LM whose weights adapters are run on; itself with all of them off."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._model = model
        self._tuned: PeftModel | None = None
        self._num_adapters = 0
        self._on: str | None = None

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", dtype: torch.dtype | None = None
    ) -> "BaseLM":
        """See `CausalLM.load`."""
        model = super().load(folder, device=device, dtype=dtype)
        assert isinstance(model, BaseLM)
        return model

    def attach(self, folder: Path, *, base_key: str = "") -> "AdaptedLM":
        """The model that this folder's adapter makes of these weights, those of `base_key`.

        Raises ModelFolderError for an adapter that would be computed wrongly, and for one whose
        tensors are not exactly those that its configuration asks for on this base.
        """
        settings = read_settings(folder)
        name = f"adapter{self._num_adapters}"
        self._num_adapters += 1
        with warnings.catch_warnings():
            # Of what merging or saving such an adapter would do; neither is done here.
            warnings.simplefilter("ignore")
            self._tuned = _inject(self._tuned or self._model, folder, settings, name)
            self._on = name
            _load_tensors(self._tuned, folder, name)
        self._tuned.train(False)
        self.turn(name)
        head = _head_weight(self._model, self.head, folder)
        return AdaptedLM(self, name, head, base_key=base_key)

    def detach(self, adapter: str) -> None:
        """Forget an adapter's weights."""
        assert self._tuned is not None
        if len(self._tuned.peft_config) > 1:  # peft keeps the last one
            self.turn(None)
            self._tuned.delete_adapter(adapter)

    def turn(self, adapter: str | None) -> None:
        """Turn this adapter on and all others off; None turns all off."""
        if adapter == self._on:
            return
        assert self._tuned is not None
        layers: Any = self._tuned.base_model
        if adapter is None:
            layers.disable_adapter_layers()
        else:
            layers.enable_adapter_layers()
            layers.set_adapter(adapter, inference_mode=True)
        self._on = adapter

    def hidden(self, ids: Int[Tensor, "T"], plan: AttentionPlan) -> Float[Tensor, "T size"]:
        """See `EngineModel.hidden`."""
        self.turn(None)
        return super().hidden(ids, plan)

    def hidden_with(
        self, adapter: str, ids: Int[Tensor, "T"], plan: AttentionPlan
    ) -> Float[Tensor, "T size"]:
        """The same with an adapter on."""
        self.turn(adapter)
        return super().hidden(ids, plan)


class AdaptedLM(CausalLM):
    """A causal LM that shares a base's weights: the base with one adapter on."""

    def __init__(
        self,
        base: BaseLM,
        adapter: str,
        head: Float[Tensor, "vocab size"],
        *,
        base_key: str = "",
    ) -> None:
        EngineModel.__init__(self, base._body)
        self.base = base
        self.base_key = base_key
        self._adapter = adapter
        self.head = head
        self.eos_ids = base.eos_ids

    def hidden(self, ids: Int[Tensor, "T"], plan: AttentionPlan) -> Float[Tensor, "T size"]:
        """See `EngineModel.hidden`."""
        return self.base.hidden_with(self._adapter, ids, plan)

    def detach(self) -> None:
        """Forget the adapter; the model must not be run after that."""
        self.base.detach(self._adapter)


def _inject(
    model: "PreTrainedModel | PeftModel", folder: Path, settings: Mapping[str, Any], name: str
) -> "PeftModel":
    """The model with new, empty layers for this adapter."""
    try:
        from peft import LoraConfig, PeftModel, get_peft_model
    except ImportError as error:
        raise ModelFolderError(
            folder / ADAPTER_CONFIG,
            "an adapter is run with peft, which is not installed; pip install 'rung[lora]', or "
            "merge the adapter into its base",
        ) from error
    known = LoraConfig.__dataclass_fields__
    config = LoraConfig(**{k: v for k, v in settings.items() if k in known and v is not None})
    config.inference_mode = True
    try:
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
            cast(Any, model.base_model).set_adapter(name, inference_mode=True)
            return model
        tuned = get_peft_model(model, config, adapter_name=name)
    except (ValueError, NotImplementedError, TypeError) as error:
        raise ModelFolderError(
            folder / ADAPTER_CONFIG, f"does not fit its base: {error}"
        ) from error
    assert isinstance(tuned, PeftModel)
    return tuned


def _load_tensors(tuned: "PeftModel", folder: Path, name: str) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    path = folder / ADAPTER
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(path, f"not a readable safetensors file: {error}") from error
    for key in [key for key in tensors if ".base_layer." in key]:
        _check_same_base(tuned, path, key, tensors.pop(key))
    made = get_peft_model_state_dict(tuned, adapter_name=name, save_embedding_layers=False)
    for key in sorted(made.keys() | tensors.keys()):
        ours, theirs = (list(t[key].shape) if key in t else None for t in (made, tensors))
        if ours != theirs:
            raise ModelFolderError(
                path,
                f"tensor {key}: the file has {_shape(theirs)}, and {ADAPTER_CONFIG} on this base "
                f"asks for {_shape(ours)}",
            )
    set_peft_model_state_dict(tuned, tensors, adapter_name=name)


def _check_same_base(tuned: "PeftModel", path: Path, key: str, theirs: Tensor) -> None:
    """peft saves the base's own embeddings and head beside an adapter of them."""
    ours = tuned.state_dict().get(key)
    if ours is None or not torch.equal(ours, theirs.to(ours.device, ours.dtype)):
        raise ModelFolderError(
            path,
            f"tensor {key} is not the base's: the base was trained as well, and as a reference it "
            "would not be the one that the adapter began from; merge the adapter instead",
        )


@torch.inference_mode()
def _head_weight(
    model: PreTrainedModel, plain: Float[Tensor, "vocab size"], folder: Path
) -> Float[Tensor, "vocab size"]:
    """The head as the adapter that is on makes it: the base's own unless the adapter touches it."""
    head: nn.Module = model.lm_head
    if type(head) is nn.Linear:
        return plain
    size = plain.shape[1]
    zero = head(torch.zeros(1, size, dtype=plain.dtype, device=plain.device))
    if zero.any():
        raise ModelFolderError(folder / ADAPTER_CONFIG, "gives the head a bias; it is not applied")
    # Whatever peft has put there is linear: its rows are what it makes of the unit vectors.
    rows: Tensor = head(torch.eye(size, dtype=plain.dtype, device=plain.device))
    return rows.T.contiguous()


def _shape(shape: list[int] | None) -> str:
    return "none" if shape is None else str(shape)
