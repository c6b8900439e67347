"""The fused body against transformers, for every kind of layer that it takes over."""

from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from prm.engine.attention import PACKED_ATTENTION, WholeSequences
from prm.engine.fused import can_fuse
from prm.engine.model import CausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS: dict[str, tuple[type[Any], type[Any], dict[str, Any]]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama with biases": (
        LlamaConfig,
        LlamaForCausalLM,
        {"attention_bias": True, "mlp_bias": True},
    ),
    "llama 3": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3_ROPE}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None, "head_dim": 16}),
}
LENGTHS = (1, 17, 60, 33)


def make(kind: str, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose every weight is random: norms and biases, too."""
    config_class, model_class, more = KINDS[kind]
    torch.manual_seed(5)
    config = config_class(**SIZES | more, attn_implementation=PACKED_ATTENTION)
    model = model_class(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    found = model.to(dtype).train(False)
    assert isinstance(found, PreTrainedModel)
    return found


def fused_model(model: PreTrainedModel) -> CausalLM:
    found = CausalLM(model)
    assert can_fuse(model.model)
    found.fuse()
    return found


def hidden_states(model: CausalLM) -> torch.Tensor:
    ids = torch.randint(0, 96, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    return model.hidden(ids, WholeSequences(LENGTHS, model.device)).float()


@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_body_computes_what_transformers_computes(kind: str) -> None:
    plain = hidden_states(CausalLM(make(kind, torch.float32)))
    fused = fused_model(make(kind, torch.float32))
    torch.testing.assert_close(hidden_states(fused), plain, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_it_errs_no_more_than_transformers(kind: str) -> None:
    truth = hidden_states(CausalLM(make(kind, torch.float32)))
    plain = hidden_states(CausalLM(make(kind, torch.bfloat16)))
    fused = hidden_states(fused_model(make(kind, torch.bfloat16)))
    theirs, ours = ((found - truth).square().mean().sqrt() for found in (plain, fused))
    assert ours < 1.2 * theirs


def test_the_weights_are_not_held_twice() -> None:
    model = make("qwen2", torch.float32)
    before = sum(weight.numel() for weight in model.parameters())
    fused_model(model)
    embeddings = 96 * SIZES["hidden_size"]
    left = sum(weight.numel() for weight in model.parameters())
    # Embeddings, and the head, which is no part of the body.
    assert left < 2 * embeddings + before // 20


@pytest.mark.parametrize(
    "change", [{"hidden_act": "gelu"}, {"model_type": "qwen3"}], ids=["activation", "other layers"]
)
def test_a_body_of_another_kind_is_left_as_it_is(change: dict[str, str]) -> None:
    model = make("qwen2", torch.float32)
    expected = hidden_states(CausalLM(model))
    for name, value in change.items():
        setattr(model.config, name, value)
    assert not can_fuse(model.model)
    unchanged = CausalLM(model)
    unchanged.fuse()
    torch.testing.assert_close(hidden_states(unchanged), expected)


def test_a_model_that_trains_is_fused_for_a_while_and_keeps_its_weights() -> None:
    model = make("qwen2", torch.float32)
    engine = CausalLM(model)
    before = hidden_states(engine)
    logits = engine.next_logits(before)
    with engine.fused_for_now():
        torch.testing.assert_close(hidden_states(engine), before, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(engine.next_logits(before), logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(hidden_states(engine), before)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(2.0)
        model.lm_head.weight.mul_(2.0)
    changed, doubled = hidden_states(engine), engine.next_logits(before)
    assert not torch.allclose(changed, before, atol=1e-2)
    # What was packed before is not what is packed now.
    with engine.fused_for_now():
        torch.testing.assert_close(hidden_states(engine), changed, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(engine.next_logits(before), doubled, atol=1e-4, rtol=1e-4)


def test_a_layer_that_computes_more_than_its_weight_is_not_fused() -> None:
    class Adapted(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = make("qwen2", torch.float32)
    model.model.layers[1].self_attn.q_proj.__class__ = Adapted
    assert not can_fuse(model.model)
    engine = CausalLM(model)
    expected = hidden_states(engine)
    with engine.fused_for_now():
        assert torch.equal(hidden_states(engine), expected)
