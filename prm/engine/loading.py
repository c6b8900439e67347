"""A checkpoint's weights into a transformers model, with nothing made up.

transformers fills a tensor that a checkpoint lacks with random numbers and says so in its log; a
score read off such a tensor looks like any other. Here it is an error, and so is a tensor that the
model has no place for: it belongs to something that would be left out.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from prm.engine.attention import PACKED_ATTENTION
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
# Constants that follow from the configuration, which older releases wrote into checkpoints.
_DERIVED = re.compile(r"rotary_emb\.inv_freq$|masked_bias$")
# TRL's value-head wrapper writes its model under this name when an accelerator saves it.
_WRAPPED = {r"^pretrained_model\.": ""}


def read_config(folder: Path) -> PreTrainedConfig:
    """The folder's configuration, by its model type and without remote code.

    Raises ModelFolderError for an architecture that would be computed wrongly here.
    """
    config: PreTrainedConfig = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    _check_supported(folder, config)
    return config


def load_weights(
    auto_class: Any,
    folder: Path,
    config: PreTrainedConfig,
    *,
    device: str,
    dtype: torch.dtype | None,
) -> tuple[PreTrainedModel, frozenset[str]]:
    """A model of this kind on its device, and the names of the tensors it has no place for.

    `dtype` None keeps the checkpoint's own on an accelerator and takes float32 on a CPU. Raises
    ModelFolderError when the checkpoint lacks a tensor, with its name and shape.
    """
    model, report = auto_class.from_pretrained(
        folder,
        config=config,
        dtype=dtype or _default_dtype(config, device),
        attn_implementation=PACKED_ATTENTION,
        key_mapping=_WRAPPED,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    if missing := sorted(report["missing_keys"]):
        shape = list(model.state_dict()[missing[0]].shape)
        raise ModelFolderError(
            folder,
            f"the weights lack {missing[0]} {shape}"
            + (f" and {len(missing) - 1} more tensors" if len(missing) > 1 else "")
            + f", which a {type(model).__name__} is made of",
        )
    nn.Module.to(model, device)
    left_over = (name for name in report["unexpected_keys"] if not _DERIVED.search(name))
    return model.train(False), frozenset(left_over)


def _default_dtype(config: PreTrainedConfig, device: str) -> torch.dtype:
    if torch.device(device).type == "cpu":
        return torch.float32
    if config.dtype in (None, torch.float16):
        return torch.bfloat16  # float16 overflows in the residual stream of large models
    assert isinstance(config.dtype, torch.dtype)
    return config.dtype


def _check_supported(folder: Path, config: object) -> None:
    path = folder / "config.json"
    for setting in UNSUPPORTED_SETTINGS:
        if getattr(config, setting, None):
            raise ModelFolderError(path, f"{setting} is set; the engine does not apply it")
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
