"""Checkpoints with a head of their own, as their authors' classes save them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedTokenizerFast

from prm.families.base import HeadLayout
from tests.layouts import QWEN_CONTROL, QWEN_TEMPLATE, byte_level_layout, save_layout
from tests.published import random_lm


def random_head(layout: HeadLayout, *, size: int, seed: int = 1) -> dict[str, Tensor]:
    """The head's tensors, large enough for scores far from one half and far from certain."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * (0.7 if name.endswith("weight") else 1.0)
        for name, shape in layout.shapes(size).items()
    }


def save_checkpoint(
    folder: Path,
    head: Mapping[str, Tensor],
    *,
    architecture: str,
    kind: str = "qwen2",
    vocab: int,
    prefix: str = "",
    with_lm_head: bool = False,
    config: Mapping[str, Any] | None = None,
    **settings: Any,
) -> None:
    """A random body with this head; `prefix` stands before the names of the body's tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    model = random_lm(kind, vocab=vocab, **settings)
    tensors = {
        prefix + name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if with_lm_head or not name.startswith("lm_head")
    }
    save_file({**tensors, **head}, folder / "model.safetensors", metadata={"format": "pt"})
    written = {**model.config.to_dict(), "architectures": [architecture], **(config or {})}
    (folder / "config.json").write_text(json.dumps(written))


def qwen_layout(*extra: str) -> Tokenizer:
    """Qwen 2.5's tokenizer layout, with more control tokens behind its own."""
    return byte_level_layout((*QWEN_CONTROL, *extra))


def stage_qwen(
    layout: HeadLayout,
    tokenizer: Tokenizer,
    *,
    architecture: str,
    bos: str = "",
    size: int = 32,
    **settings: Any,
) -> Callable[[Path], None]:
    """Writes a checkpoint on a Qwen 2 body with a Qwen 2.5 tokenizer and template."""

    def write(folder: Path) -> None:
        save_checkpoint(
            folder,
            random_head(layout, size=size),
            architecture=architecture,
            vocab=tokenizer.get_vocab_size(),
            **settings,
        )
        save_layout(tokenizer, folder, template=QWEN_TEMPLATE, bos=bos, eos="<|im_end|>")

    return write


def tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer as the authors' scripts load it."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def _body(config: PreTrainedConfig) -> nn.Module:
    body: nn.Module = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    return body


class ProcessRewardModel(nn.Module):
    """Qwen2.5-Math-PRM's and Qwen2.5-Math-RM's class, down to what a forward needs."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.model = _body(config)
        size = int(config.hidden_size)
        self.score = nn.Sequential(
            nn.Linear(size, size), nn.ReLU(), nn.Linear(size, len(config.id2label or {}))
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of every token."""
        logits: Tensor = self.score(self.model(input_ids=ids).last_hidden_state)
        return logits


class ValueHead(nn.Module):
    """TRL's value head, whose dropout does nothing outside training."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)
        self.summary = nn.Linear(size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """A value per hidden state."""
        value: Tensor = self.summary(self.dropout(hidden))
        return value


class WithValueHead(nn.Module):
    """Skywork-o1-Open-PRM's and PQM's class, down to what a forward needs."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.model = _body(config)
        self.v_head = ValueHead(int(config.hidden_size))

    def forward(self, ids: Tensor) -> Tensor:
        """The value of every token."""
        value: Tensor = self.v_head(self.model(input_ids=ids).last_hidden_state).squeeze(-1)
        return value


class ReasonEval(nn.Module):
    """ReasonEval's classes, whose configurations name the same settings differently."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.model = _body(config)
        names = ("score_dim", "bias") if hasattr(config, "score_dim") else _NAMES_7B
        classes, bias = (getattr(config, name) for name in names)
        self.score_head = nn.Linear(int(config.hidden_size), classes, bias=bias)

    def forward(self, ids: Tensor) -> Tensor:
        """Class logits of every token."""
        logits: Tensor = self.score_head(self.model(input_ids=ids).last_hidden_state)
        return logits


_NAMES_7B = ("score_dimension", "use_bias")
M = TypeVar("M", bound=nn.Module)


def load_literal(kind: Callable[[PreTrainedConfig], M], folder: Path) -> M:
    """One of these over a saved checkpoint, in float32: every tensor by its name, none left out."""
    model = kind(AutoConfig.from_pretrained(folder))
    tensors = {
        name.removeprefix("pretrained_model."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    model.load_state_dict({n: t for n, t in tensors.items() if not n.startswith("lm_head")})
    return model.float().train(False)
