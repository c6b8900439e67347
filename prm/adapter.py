"""LoRA adapters as peft saves them: which of their settings the engine runs.

Told from `adapter_config.json` alone, so that an import asks what `prm/engine/lora.py` asks, before
any weights are loaded. A setting that peft applies outside the layers, or by changing the base,
would be lost in the engine or would change the reference: it is refused by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prm.errors import ModelFolderError
from prm.files import read_json
from prm.weights import ADAPTER_CONFIG

# What peft applies inside the layers, or what says nothing about the computation.
APPLIED = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_bias",
        "lora_dropout",
        "megatron_core",
        "modules_to_save",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "trainable_token_indices",
        "use_dora",
        "use_rslora",
    }
)
# Of a setting that is not named, peft's own default holds, and it is among these. Other ways to
# begin change the base: see peft's `path_initial_model_for_weight_conversion`.
RUN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),
}
MERGE = "merge it into its base (peft: `merge_and_unload`, then `save_pretrained`)"
# What the merged model of another task is imported as.
_MERGED_AS = {
    "TOKEN_CLS": ", and import that with --recipe trl, h4 or pure",
    "SEQ_CLS": ", and import that with --family outcome",
}


def read_settings(folder: Path) -> dict[str, Any]:
    """An adapter's configuration. Raises ModelFolderError for one that is not run."""
    path = folder / ADAPTER_CONFIG
    settings = read_json(path)
    if "peft_type" not in settings:
        raise ModelFolderError(path, "names no peft_type, so nothing says what the weights are")
    for name, value in settings.items():
        if name in RUN:
            if not any(value is good or value == good for good in RUN[name]):
                known = " or ".join(str(good) for good in RUN[name] if good is not None)
                raise ModelFolderError(
                    path,
                    f"{name} {value!r} is not run; only {known} is; {MERGE}"
                    + (_MERGED_AS.get(str(value), "") if name == "task_type" else ""),
                )
        elif value and name not in APPLIED:
            raise ModelFolderError(
                path, f"{name} is set, and the engine does not apply it; {MERGE}"
            )
    return settings
