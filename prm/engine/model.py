"""A causal language model, loaded from a folder, run over packed batches."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from prm.engine.attention import PACKED_ATTENTION, AttentionPlan, WholeSequences
from prm.engine.kv import KeyValuePool, SlotCache
from prm.engine.logprobs import target_logprobs
from prm.errors import ModelFolderError

# Settings that change what the head or attention computes and that this engine does not apply.
UNSUPPORTED_SETTINGS = (
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "logits_scaling",
    "logit_scale",
    "num_local_experts",
)
# These change all positions' angles once some sequence in the batch is long.
VARYING_ROPE = ("dynamic", "longrope")


class CausalLM:
    """The engine's view of a Hugging Face causal LM: hidden states in, log-probs out."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model.train(False)
        self._body: nn.Module = getattr(model, model.base_model_prefix)
        self.head: Float[Tensor, "vocab size"] = model.lm_head.weight
        self.device = self.head.device
        self.context_limit = int(model.config.max_position_embeddings)
        self.eos_ids = _eos_ids(model)

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", dtype: torch.dtype | None = None
    ) -> "CausalLM":
        """Load safetensors weights, without remote code and without a network.

        `dtype` None keeps the checkpoint's own on an accelerator and takes float32 on a CPU.
        Raises ModelFolderError for an architecture that would be computed wrongly here.
        """
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        _check_supported(folder, config)
        if dtype is None:
            dtype = torch.float32 if torch.device(device).type == "cpu" else config.dtype
            if dtype in (None, torch.float16):
                dtype = torch.bfloat16  # float16 overflows in the residual stream of large models
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=PACKED_ATTENTION,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
        nn.Module.to(model, device)
        if getattr(model.lm_head, "bias", None) is not None:
            raise ModelFolderError(folder / "config.json", "the head has a bias; it is not applied")
        return cls(model)

    def new_cache(self, slots: int) -> SlotCache:
        """An empty cache for this many running sequences."""
        config = self._model.config
        heads = config.num_attention_heads
        return SlotCache(
            layers=config.num_hidden_layers,
            slots=slots,
            kv_heads=config.num_key_value_heads or heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            dtype=self.head.dtype,
            device=self.device,
        )

    @property
    def num_ids(self) -> int:
        """Ids that the model has a row for: 0 to `num_ids` - 1."""
        return int(self._model.get_input_embeddings().weight.shape[0])

    def new_pool(self) -> KeyValuePool:
        """An empty pool for this model's keys and values."""
        config = self._model.config
        heads = config.num_attention_heads
        return KeyValuePool(
            layers=config.num_hidden_layers,
            kv_heads=config.num_key_value_heads or heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            dtype=self.head.dtype,
            device=self.device,
        )

    @torch.inference_mode()
    def hidden(self, ids: Int[Tensor, "T"], plan: AttentionPlan) -> Float[Tensor, "T size"]:
        """Last hidden states of a packed batch."""
        output = self._body(
            input_ids=ids[None], position_ids=plan.position_ids, use_cache=False, plan=plan
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def next_logits(self, hidden: Float[Tensor, "n size"]) -> Float[Tensor, "n vocab"]:
        """Float32 logits of the token after each of these hidden states."""
        return (hidden @ self.head.T).float()

    @torch.inference_mode()
    def target_logprobs(
        self, hidden: Float[Tensor, "n size"], targets: Int[Tensor, "n"]
    ) -> Float[Tensor, "n"]:
        """Float32 log-prob of a given token after each of these hidden states."""
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
        self, hidden: Float[Tensor, "n size"], labels: Sequence[int]
    ) -> Float[Tensor, "n labels"]:
        """Float32 logits of these vocabulary ids after each of these hidden states."""
        return (hidden @ self.head[list(labels)].T).float()


def _eos_ids(model: PreTrainedModel) -> frozenset[int]:
    """The tokens that end a turn by the folder's generation_config.json, else by its config."""
    named = getattr(model.generation_config, "eos_token_id", None)
    if named is None:
        named = getattr(model.config, "eos_token_id", None)
    if named is None:
        return frozenset()
    return frozenset([named] if isinstance(named, int) else named)


def _check_supported(folder: Path, config: object) -> None:
    path = folder / "config.json"
    for setting in UNSUPPORTED_SETTINGS:
        if getattr(config, setting, None):
            raise ModelFolderError(path, f"{setting} is set; the engine does not apply it")
    window = getattr(config, "sliding_window", None)
    limit = int(getattr(config, "max_position_embeddings", 0))
    if window and getattr(config, "use_sliding_window", True) and window < limit:
        raise ModelFolderError(path, f"sliding_window {window} is not run; only full attention is")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in VARYING_ROPE:
        raise ModelFolderError(
            path,
            f"rope_type {rope['rope_type']} depends on the longest sequence of a batch, and a "
            "score must not",
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ModelFolderError(path, f"layer types {sorted(kinds)}: only full_attention is run")
