"""Tiny LoRA adapters as peft saves them, on a tiny base."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from prm.weights import ADAPTER
from tests.published import random_lm
from training.tokenizer import END_ID, PAD_ID, VOCAB_SIZE, save_tokenizer

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# What an adapter's folder lacks of a version's files.
OF_THE_BASE = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def stage_base(folder: Path, *, tied: bool = False, **settings: Any) -> None:
    """A causal LM with the byte tokenizer."""
    ids = {"eos_token_id": END_ID, "pad_token_id": PAD_ID, "tie_word_embeddings": tied}
    model = random_lm("qwen2", vocab=VOCAB_SIZE, seed=1, **{**ids, **settings})
    model.save_pretrained(folder)
    save_tokenizer(folder, context_limit=1024)


def save_adapter(base: Path, folder: Path, *, seed: int = 0, **settings: Any) -> PeftModel:
    """A random adapter as peft saves it; returns peft's own model of it."""
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        _randomise(model)
        model.save_pretrained(str(folder))
    model.train(False)
    assert isinstance(model, PeftModel)
    return model


def lend_files(base: Path, folder: Path) -> None:
    """What of the base a version with an adapter holds, as a publisher puts it there."""
    for name in OF_THE_BASE:
        shutil.copy(base / name, folder / name)
    (folder / "README.md").unlink()


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """A change of fields in a folder's JSON file."""

    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """A change of an adapter's tensors."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / ADAPTER)
        change(tensors)
        save_file(tensors, folder / ADAPTER)

    return apply


def _randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = parameter.abs().mean() if "magnitude" in name else 0.3
                parameter.add_(torch.randn_like(parameter) * scale * 0.5)
