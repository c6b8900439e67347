"""Models as the engine sees them: a transformer's body run over packed batches, and a head."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from prm.engine.attention import AttentionPlan, WholeSequences
from prm.engine.fused import FusedBody, PackedLinear, can_fuse
from prm.engine.kv import KeyValuePool, SlotCache
from prm.engine.loading import load_weights, read_config
from prm.engine.logprobs import float_logits, target_logprobs
from prm.errors import ModelFolderError
from prm.manifest import longest_read


class EngineModel(ABC):
    """A body, on its device and in its dtype, that turns tokens into hidden states."""

    def __init__(self, body: PreTrainedModel) -> None:
        self._body = body
        self._fused: FusedBody | None = None
        self._config = body.config
        self.device = body.device
        self.dtype = body.dtype
        self.context_limit = longest_read(body.config.to_dict())

    @abstractmethod
    def head_values(
        self, hidden: Float[Tensor, "n size"], labels: Sequence[int] = ()
    ) -> Float[Tensor, "n outputs"]:
        """What the head says of each of these hidden states, raw, in float32.

        `labels` as in `prm.families.base.HeadRead`.
        """

    @abstractmethod
    def target_logprobs(
        self, hidden: Float[Tensor, "n size"], targets: Int[Tensor, "n"]
    ) -> Float[Tensor, "n"]:
        """Float32 log-prob of a given token after each of these hidden states."""

    def new_cache(self, slots: int) -> SlotCache:
        """An empty cache for this many running sequences."""
        return SlotCache(slots=slots, **self._cache_shape())

    @torch.inference_mode()
    def fuse(self) -> None:
        """Compute the body in fewer operations from now on, if `fused.py` knows its layers.

        For models that only serve: the body's own weights are gone afterwards.
        """
        if can_fuse(self._body):
            self._fused = FusedBody(self._body, takes_over=True)

    @contextmanager
    def fused_for_now(self) -> Iterator[None]:
        """Within, as `fuse`, on a packed copy of the weights as they are at the start.

        For a model that trains: its own weights stay, and must not change within. Under autocast
        the body runs as it is: the copy would be in another precision than the training's.
        """
        assert self._fused is None, "nothing is left of this body's weights to copy"
        if can_fuse(self._body) and not torch.is_autocast_enabled(self.device.type):
            with torch.inference_mode():
                self._fused = FusedBody(self._body, takes_over=False)
        try:
            yield
        finally:
            self._fused = None

    @property
    def num_ids(self) -> int:
        """Ids that the model has a row for: 0 to `num_ids` - 1."""
        weights = self._body.get_input_embeddings().weight
        assert isinstance(weights, Tensor)
        return int(weights.shape[0])

    def new_pool(self) -> KeyValuePool:
        """An empty pool for this model's keys and values."""
        return KeyValuePool(**self._cache_shape())

    def _cache_shape(self) -> dict[str, Any]:
        """What a token's keys and values are made of."""
        config = self._config
        heads = config.num_attention_heads
        return {
            "layers": config.num_hidden_layers,
            "kv_heads": config.num_key_value_heads or heads,
            "head_size": getattr(config, "head_dim", None) or config.hidden_size // heads,
            "dtype": self.dtype,
            "device": self.device,
        }

    @torch.inference_mode()
    def hidden(self, ids: Int[Tensor, "T"], plan: AttentionPlan) -> Float[Tensor, "T size"]:
        """Last hidden states of a packed batch."""
        if self._fused is not None:
            return self._fused(ids, plan)
        output = self._body(
            input_ids=ids[None], position_ids=plan.position_ids, use_cache=False, plan=plan
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


class CausalLM(EngineModel):
    """A causal language model: its head has an output per vocabulary id."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(getattr(model, model.base_model_prefix))
        self.head: Float[Tensor, "vocab size"] = model.lm_head.weight
        self._packed_head: PackedLinear | None = None
        self.eos_ids = _eos_ids(model)

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", dtype: torch.dtype | None = None
    ) -> "CausalLM":
        """Load safetensors weights, without remote code and without a network.

        `dtype` as in `load_weights`. Raises ModelFolderError for an architecture that would be
        computed wrongly here, and for weights that are not just a causal language model's.
        """
        config = read_config(folder)
        model, left_over = load_weights(
            AutoModelForCausalLM, folder, config, device=device, dtype=dtype
        )
        if left_over:
            raise ModelFolderError(
                folder,
                f"the weights hold {', '.join(sorted(left_over)[:3])}, which a "
                f"{type(model).__name__} has no place for; a model with a head of its own is read "
                "by a family that names it",
            )
        if getattr(model.lm_head, "bias", None) is not None:
            raise ModelFolderError(folder / "config.json", "the head has a bias; it is not applied")
        return cls(model)

    @contextmanager
    def fused_for_now(self) -> Iterator[None]:
        """See `EngineModel.fused_for_now`; the head, too, where the body is."""
        with super().fused_for_now():
            if self._fused is not None:
                with torch.inference_mode():
                    self._packed_head = PackedLinear.pack(self.head, None)
            try:
                yield
            finally:
                self._packed_head = None

    @torch.inference_mode()
    def next_logits(self, hidden: Float[Tensor, "n size"]) -> Float[Tensor, "n vocab"]:
        """Float32 logits of the token after each of these hidden states."""
        if self._packed_head is not None:
            return self._packed_head(hidden).float()
        return float_logits(hidden, self.head)

    @torch.inference_mode()
    def target_logprobs(
        self, hidden: Float[Tensor, "n size"], targets: Int[Tensor, "n"]
    ) -> Float[Tensor, "n"]:
        """See `EngineModel.target_logprobs`."""
        return target_logprobs(hidden, self.head, targets)

    @torch.inference_mode()
    def logprobs(
        self, ids: Sequence[Sequence[int]], first: Sequence[int]
    ) -> list[Float[Tensor, "targets"]]:
        """log p(ids[i][t] | ids[i][:t]) for every t ≥ first[i] ≥ 1, float32, one forward.

        The last token is not read, only predicted; a sequence's result does not depend on the
        others in the batch.
        """
        assert all(start >= 1 for start in first), "the first token has no prediction"
        lengths = [len(sequence) - 1 for sequence in ids]
        packed = torch.tensor([t for s in ids for t in s[:-1]], device=self.device)
        hidden = self.hidden(packed, WholeSequences(lengths, self.device))
        wanted: list[int] = []
        begin = 0
        for length, start in zip(lengths, first, strict=True):
            wanted.extend(range(begin + start - 1, begin + length))
            begin += length
        targets = [token for s, start in zip(ids, first, strict=True) for token in s[start:]]
        flat = target_logprobs(
            hidden[torch.tensor(wanted, device=self.device, dtype=torch.long)],
            self.head,
            torch.tensor(targets, device=self.device, dtype=torch.long),
        )
        counts = [len(s) - start for s, start in zip(ids, first, strict=True)]
        return list(torch.split(flat, counts))

    @torch.inference_mode()
    def head_values(
        self, hidden: Float[Tensor, "n size"], labels: Sequence[int] = ()
    ) -> Float[Tensor, "n outputs"]:
        """See `EngineModel.head_values`: the logits of the vocabulary ids `labels`."""
        # A few rows: in float32 throughout, whatever the weights' precision.
        return hidden.float() @ self.head[list(labels)].float().T


def _eos_ids(model: PreTrainedModel) -> frozenset[int]:
    """The tokens that end a turn by the folder's generation_config.json, else by its config."""
    named = getattr(model.generation_config, "eos_token_id", None)
    if named is None:
        named = getattr(model.config, "eos_token_id", None)
    if named is None:
        return frozenset()
    return frozenset([named] if isinstance(named, int) else named)
