"""LoRA adapters that train (Hu et al., arXiv 2106.09685): a base that stays, and what is added.

One copy of the base's weights is all the models that are made of it: the policy with its adapter
on, the PRM with another, the reference with all of them off. The layers are peft's own, so that
what is saved is what peft reads; which adapter is on is set before every read of a model.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from prm.engine.attention import AttentionPlan
from prm.engine.model import CausalLM
from prm.errors import InvalidInput
from prm.weights import ADAPTER
from training.data import Example
from training.models import Found, TrainedLM
from training.ranks import ALONE, Ranks
from training.reading import PackedReading
from training.spec import Adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import Linear


class AdaptedBase:
    """A model that stays, with adapters by name, at most one of which is on."""

    def __init__(
        self, reading: PackedReading, adapters: Mapping[str, Adapter], ranks: Ranks = ALONE
    ) -> None:
        self.reading = reading
        self.ranks = ranks
        reading.model.requires_grad_(False)
        tuned: PreTrainedModel | PeftModel = reading.model
        for name, settings in adapters.items():
            tuned = _with_adapter(tuned, reading.model, name, settings)
        for name, weight in reading.model.named_parameters():
            # peft leaves gradients to the adapter that was added last.
            weight.requires_grad_(".lora_" in name)
        self._tuned = cast("PeftModel", tuned)
        self._layers = _lora_layers(reading.model)
        self._on: str | None = next(iter(adapters))
        self.turn(None)
        TrainedLM(reading, ranks).spread()

    def turn(self, adapter: str | None) -> None:
        """Turn this adapter on and all others off; None turns all off.

        Not by peft's own switch: that one also takes gradients from whatever is off.
        """
        if adapter == self._on:
            return
        for layer in self._layers.values():
            layer._disable_adapters = adapter is None
            layer._active_adapter = [] if adapter is None else [adapter]
        self._on = adapter

    def save_adapter(self, adapter: str, folder: Path) -> None:
        """The adapter as peft saves it; the ranks' weights are whole."""
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(
            self._tuned,
            state_dict=dict(self._tuned.named_parameters()),
            adapter_name=adapter,
            save_embedding_layers=False,
        )
        folder.mkdir(parents=True, exist_ok=True)
        kept = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(kept, folder / ADAPTER, metadata={"format": "pt"})
        config = self._tuned.peft_config[adapter]
        config.inference_mode = True
        config.save_pretrained(str(folder))

    def merged(self, adapter: str | None) -> dict[str, Tensor]:
        """The weights by their names in a model without adapters, this one added to them."""
        of_model = self.reading.model.named_parameters(remove_duplicate=False)
        weights = {
            name.replace(".base_layer.", "."): weight.detach()
            for name, weight in of_model
            if ".lora_" not in name
        }
        for name, layer in self._layers.items():
            if adapter is not None and adapter in layer.lora_A:
                delta = layer.get_delta_weight(adapter).detach()
                weights[f"{name}.weight"] = weights[f"{name}.weight"] + delta
        return weights


class AdaptedLM(TrainedLM):
    """A base with one adapter on, which trains; with None, the base itself, which does not."""

    def __init__(self, base: AdaptedBase, adapter: str | None) -> None:
        super().__init__(base.reading, base.ranks)
        self._base = base
        self._adapter = adapter
        self.engine = _AdaptedEngine(self.model, lambda: base.turn(adapter))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The adapter's weights."""
        if self._adapter is None:
            return []
        own = re.compile(rf"\.lora_[AB]\.{re.escape(self._adapter)}\.")
        return [weight for name, weight in self.model.named_parameters() if own.search(name)]

    def freeze(self) -> TrainedLM:
        """The base itself. An adapter cannot be frozen: a job has none that does not train."""
        assert self._adapter is None
        return self

    def forward(
        self,
        examples: Sequence[Example],
        *,
        temperature: float = 1.0,
        with_entropies: bool = False,
    ) -> Found:
        """See `TrainedLM.forward`."""
        self._base.turn(self._adapter)
        return super().forward(examples, temperature=temperature, with_entropies=with_entropies)

    def save_adapter(self, folder: Path) -> None:
        """The adapter alone, as peft saves it; `save` writes the whole model that it makes."""
        assert self._adapter is not None, "the base has nothing of its own to save"
        with self.ranks.whole(self.reading):
            if self.ranks.index == 0:
                self._base.save_adapter(self._adapter, folder)
        self.ranks.wait()

    def saved_tensors(self) -> dict[str, Tensor]:
        """The weights that the adapter makes of the base's."""
        return self._base.merged(self._adapter)


class _AdaptedEngine(CausalLM):
    """The engine's view of it: `turn` comes before every forward."""

    def __init__(self, model: PreTrainedModel, turn: Callable[[], None]) -> None:
        super().__init__(model)
        self._turn = turn

    def hidden(self, ids: Int[Tensor, "T"], plan: AttentionPlan) -> Float[Tensor, "T size"]:
        self._turn()
        return super().hidden(ids, plan)


def _with_adapter(
    tuned: "PreTrainedModel | PeftModel", model: PreTrainedModel, name: str, settings: Adapter
) -> "PeftModel":
    """The model with new layers for this adapter, which begins as nothing: its B is 0."""
    param = "adapter" if name == "policy" else f"{name}_adapter"
    try:
        from peft import LoraConfig, PeftModel, get_peft_model
    except ImportError as error:
        raise InvalidInput(
            f"{param}: an adapter is trained with peft, which is not installed; "
            "pip install 'rung[lora]', or leave it out",
            param=param,
        ) from error
    targets = settings.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    with warnings.catch_warnings():
        # Of what merging such an adapter would do, and of one more adapter on a model.
        warnings.simplefilter("ignore")
        try:
            if isinstance(tuned, PeftModel):
                tuned.add_adapter(name, config)
            else:
                tuned = cast(PeftModel, get_peft_model(tuned, config, adapter_name=name))
        except ValueError as error:
            raise InvalidInput(
                f"{param}.target_modules: {str(error).splitlines()[0][:200]}; this model's linear "
                f"layers are {', '.join(_linear_names(model))}",
                param=f"{param}.target_modules",
            ) from error
    _check_only_layers(model, param)
    return tuned


def _check_only_layers(model: PreTrainedModel, param: str) -> None:
    from peft.tuners.lora import Linear, LoraLayer

    kept = (model.get_input_embeddings(), model.lm_head)
    found = ((path, m) for path, m in model.named_modules() if isinstance(m, LoraLayer))
    for path, layer in found:
        if layer in kept or not isinstance(layer, Linear):
            raise InvalidInput(
                f"{param}.target_modules names {path.rpartition('.')[2]}: head, embeddings and "
                'what is no linear layer stay as they are; leave it out, or write "all-linear"',
                param=f"{param}.target_modules",
            )


def _lora_layers(model: PreTrainedModel) -> "dict[str, Linear]":
    from peft.tuners.lora import Linear

    return {name: m for name, m in model.named_modules() if isinstance(m, Linear)}


def _linear_names(model: PreTrainedModel) -> list[str]:
    names = {
        name.removesuffix(".base_layer").rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not model.lm_head and ".lora_" not in name
    }
    return sorted(names)
