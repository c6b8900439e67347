"""The body of a Llama-like model in few operations, for CPUs.

A decoder layer of transformers is some thirty passes over memory around seven matrix products. Here
it is seven: oneDNN multiplies by weights packed for it and applies bias, activation, gate and
residual before a result leaves the cache; a norm's weight is part of the matrix behind it; and
rotary embedding is one complex product, for which the rows of the query and key projections are
put in another order (the products of queries and keys do not depend on it). Everything else is as
transformers computes it; the golden scores of every version, and tests, hold the two together.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from prm.engine.attention import AttentionPlan

# Bodies whose layers are these: RMS norm, attention with rotary embedding, RMS norm, gated MLP.
MODEL_TYPES = ("llama", "mistral", "qwen2")
# Batch sizes may differ from what weights are packed for; this one is only a hint.
PACKED_FOR = 1024


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """x ↦ x · Wᵀ + b, and what is applied to it on the way out."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def pack(
        cls, weight: Float[Tensor, "out in"], bias: Float[Tensor, "out"] | None
    ) -> "PackedLinear":
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR)
        return cls(packed, bias)

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, activation, [], ""
        )
        return found

    def with_other(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        """The product and another tensor, added or multiplied."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self.weight, self.bias, operation
        )
        return found


@dataclass(frozen=True, slots=True)
class _Layer:
    """One decoder layer's matrices; the norms' weights are in `qkv`, `gate` and `up`."""

    qkv: PackedLinear
    output: PackedLinear
    gate: PackedLinear
    up: PackedLinear
    down: PackedLinear
    scale: float
    epsilon: float


class FusedBody:
    """A body on a CPU, as its weights are now: they are copied, packed.

    With `takes_over` the body's own linear weights are gone afterwards: none is held twice.

    In bfloat16 norms and rotary embedding are computed in float32, and a matrix is rounded after a
    norm's weight was multiplied into it, where transformers rounds what is multiplied by both.

    Legend: T tokens, H query heads, K key-value heads, D head size.
    """

    def __init__(self, body: PreTrainedModel, *, takes_over: bool) -> None:
        config = body.config
        parts: Any = body
        self._embeddings: nn.Module = parts.embed_tokens
        self._rotary: nn.Module = parts.rotary_emb
        self._heads = (config.num_attention_heads, config.num_key_value_heads)
        self._head_size = parts.layers[0].self_attn.head_dim
        self._norm = copy.copy(parts.norm)
        self._layers = [self._pack_layer(layer, takes_over) for layer in parts.layers]

    def __call__(self, ids: Int[Tensor, "T"], plan: AttentionPlan) -> Float[Tensor, "T size"]:
        """Last hidden states of a packed batch."""
        hidden: Tensor = self._embeddings(ids)
        cosine, sine = self._rotary(hidden[None], plan.position_ids)
        half = self._head_size // 2
        turn = torch.complex(cosine[0, :, :half].float(), sine[0, :, :half].float())[:, None]
        for index, layer in enumerate(self._layers):
            hidden = self._run(index, layer, hidden, turn, plan)
        found: Tensor = self._norm(hidden)
        return found

    def _run(
        self, index: int, layer: _Layer, hidden: Tensor, turn: Tensor, plan: AttentionPlan
    ) -> Tensor:
        queries, keys = self._heads
        heads = layer.qkv(_normalised(hidden, layer.epsilon)).view(
            len(hidden), queries + 2 * keys, self._head_size
        )
        pairs = heads[:, : queries + keys].view(len(hidden), -1, self._head_size // 2, 2)
        turned = torch.view_as_real(torch.view_as_complex(pairs.float()) * turn).flatten(-2)
        turned = turned.to(hidden.dtype)
        attended = plan.attend(
            index,
            turned[:, :queries],
            turned[:, queries:],
            heads[:, queries + keys :],
            layer.scale,
        )
        hidden = layer.output.with_other(attended.flatten(1), hidden, "add")
        normed = _normalised(hidden, layer.epsilon)
        gated = layer.up.with_other(normed, layer.gate(normed, "swish"), "mul")
        return layer.down.with_other(gated, hidden, "add")

    def _pack_layer(self, layer: Any, takes_over: bool) -> _Layer:
        """Fold, reorder, pack, and leave nothing behind where this takes over."""
        attention, mlp = layer.self_attn, layer.mlp
        queries, keys = self._heads
        before, after = layer.input_layernorm, layer.post_attention_layernorm
        parts = [
            self._pairwise(attention.q_proj, queries),
            self._pairwise(attention.k_proj, keys),
            (attention.v_proj.weight, attention.v_proj.bias),
        ]
        qkv = _folded(torch.cat([weight for weight, _ in parts]), before)
        biases = [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in parts]
        packed = _Layer(
            qkv=PackedLinear.pack(qkv, torch.cat(biases)),
            output=PackedLinear.pack(attention.o_proj.weight, attention.o_proj.bias),
            gate=PackedLinear.pack(_folded(mlp.gate_proj.weight, after), mlp.gate_proj.bias),
            up=PackedLinear.pack(_folded(mlp.up_proj.weight, after), mlp.up_proj.bias),
            down=PackedLinear.pack(mlp.down_proj.weight, mlp.down_proj.bias),
            scale=attention.scaling,
            epsilon=before.variance_epsilon,
        )
        for module in (*attention.children(), *mlp.children()) if takes_over else ():
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)
        return packed

    def _pairwise(self, projection: nn.Linear, heads: int) -> tuple[Tensor, Tensor | None]:
        """Rows such that numbers which rotate together, half a head apart, lie side by side."""
        order = torch.arange(heads * self._head_size).view(heads, 2, -1).transpose(1, 2).flatten()
        bias = projection.bias
        return projection.weight[order], None if bias is None else bias[order]


def can_fuse(body: PreTrainedModel) -> bool:
    """Whether this body is one whose layers are known here, on a CPU with oneDNN."""
    config = body.config
    return (
        config.model_type in MODEL_TYPES
        and config.hidden_act == "silu"
        and body.device.type == "cpu"
        and body.dtype in (torch.float32, torch.bfloat16)
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and "partial_rotary_factor" not in (getattr(config, "rope_parameters", None) or {})
        and all(map(_is_plain, _projections(body)))
    )


def _projections(body: Any) -> Iterator[nn.Module]:
    """What `_pack_layer` takes weights of."""
    for layer in body.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield from (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        yield from (mlp.gate_proj, mlp.up_proj, mlp.down_proj)


def _is_plain(module: nn.Module) -> bool:
    """Whether a layer is nothing but its weight and bias, whole and here.

    An adapter's computes more than the weight that it shows, and of a sharded one only a part is
    here.
    """
    return type(module) is nn.Linear and type(module.weight.data) is Tensor


def _normalised(hidden: Float[Tensor, "T size"], epsilon: float) -> Float[Tensor, "T size"]:
    """Root-mean-square norm without its weight."""
    exact = hidden.float()
    mean_square = torch.linalg.vecdot(exact, exact)[:, None] / hidden.shape[1]
    return (exact * torch.rsqrt(mean_square + epsilon)).to(hidden.dtype)


def _folded(weight: Float[Tensor, "out in"], norm: Any) -> Float[Tensor, "out in"]:
    """A matrix that takes what is not yet multiplied by the norm's weight."""
    folded: Tensor = weight.float() * norm.weight.float()
    return folded.to(weight.dtype)
