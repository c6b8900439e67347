"""The models of the benchmark: the bundled one, and Qwen2 shapes with random weights.

Speed does not depend on the weights. Token ids are all that is read, so no tokenizer is needed.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contestant import ROOT

BUNDLED_ROOT = ROOT / "models"
BUNDLED = BUNDLED_ROOT / "rung-arith-prm" / "1"
QWEN_VOCABULARY = 151_936
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Qwen2 model's shape. The head shares the embedding's weights."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    max_position_embeddings: int = 1024

    @classmethod
    def of(cls, folder: Path) -> "Shape":
        """The shape of a model folder."""
        config = json.loads((folder / "config.json").read_text())
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})

    @property
    def matrices(self) -> list[tuple[int, int, int]]:
        """The linear layers that a token passes: (inputs, outputs, how many of this shape).

        Without the head, whose matrix is `(hidden_size, vocab_size)`.
        """
        size, inner = self.hidden_size, self.intermediate_size
        head = size // self.num_attention_heads
        layers = self.num_hidden_layers
        return [
            (size, self.num_attention_heads * head, layers),
            (size, self.num_key_value_heads * head, 2 * layers),
            (self.num_attention_heads * head, size, layers),
            (size, inner, 2 * layers),
            (inner, size, layers),
        ]

    @property
    def num_parameters(self) -> int:
        """Weights of the matrices and the embedding; the few biases and norms are left out."""
        body = sum(inputs * outputs * count for inputs, outputs, count in self.matrices)
        return body + self.hidden_size * self.vocab_size

    def scoring_flops(self, lengths: Iterable[int]) -> float:
        """Operations that scoring every token but the first of these sequences cannot do without.

        Two per weight and token read (the last token is only predicted), and four per head
        dimension, layer and pair of a token with one that it sees, itself included.
        """
        flops = 0.0
        for length in lengths:
            read = length - 1
            pairs = read * (read + 1) / 2
            flops += 2.0 * self.num_parameters * read
            flops += 4.0 * self.num_hidden_layers * self.hidden_size * pairs
        return flops


# 29.5 million parameters, 12.3 of them in the embedding.
SMALL = Shape(
    vocab_size=32_000,
    hidden_size=384,
    num_hidden_layers=10,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=1152,
)
# 120 million parameters, 78 of them in the embedding: with Qwen's vocabulary, the head is most of
# the work of a small model.
LARGE = Shape(
    vocab_size=QWEN_VOCABULARY,
    hidden_size=512,
    num_hidden_layers=14,
    num_attention_heads=8,
    num_key_value_heads=2,
    intermediate_size=1536,
)
# For `--quick`: nothing is learnt from its speed.
TINY = Shape(
    vocab_size=2048,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=128,
)
SHAPES = {"30m": SMALL, "120m": LARGE, "tiny": TINY}


def model_folder(name: str, root: Path) -> Path:
    """The folder of a model by name; a random one is written under `root` the first time."""
    if name == "bundled":
        return BUNDLED
    folder = root / name
    if not folder.exists():
        _write_random(SHAPES[name], folder)
    return folder


def _write_random(shape: Shape, folder: Path) -> None:
    """Random float32 weights, the same every time, and the configuration."""
    from dataclasses import asdict

    import torch
    from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

    torch.manual_seed(SEED)
    config = Qwen2Config(**asdict(shape), tie_word_embeddings=True)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.float32
    )
    model.save_pretrained(folder)
