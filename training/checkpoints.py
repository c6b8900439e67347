"""Small models from scratch, and the folders that the rest of Rung reads them from."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, Qwen2Config

from training.tokenizer import end_and_pad_ids, save_tokenizer, vocab_size


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """The shape of a Qwen2 model. The default has 0.82 million parameters, 3.3 MB in float32."""

    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    intermediate_size: int = 384
    max_position_embeddings: int = 512


def new_model(size: ModelSize, *, seed: int, alphabet: str | None = None) -> PreTrainedModel:
    """A Qwen2 model over bytes, or an alphabet, with random weights, the same for the same seed."""
    torch.manual_seed(seed)
    end_id, pad_id = end_and_pad_ids(alphabet)
    config = Qwen2Config(
        **asdict(size),
        vocab_size=vocab_size(alphabet),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_id,
        pad_token_id=pad_id,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.float32
    )
    return model


def save_model(model: PreTrainedModel, folder: Path, *, alphabet: str | None = None) -> None:
    """Write weights, configuration, generation defaults and tokenizer into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    end_id, pad_id = end_and_pad_ids(alphabet)
    model.generation_config = GenerationConfig.from_dict(
        {"do_sample": True, "temperature": 1.0, "eos_token_id": end_id, "pad_token_id": pad_id}
    )
    model.save_pretrained(folder)
    context_limit = int(model.config.max_position_embeddings)
    save_tokenizer(folder, context_limit=context_limit, alphabet=alphabet)


def load_model(folder: Path) -> PreTrainedModel:
    """The model of such a folder, in float32 and ready to train."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return model
