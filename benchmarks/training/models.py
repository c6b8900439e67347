"""The models of the benchmark: the bundled policy, and Qwen2 shapes with random weights."""

import json
from pathlib import Path

from benchmarks.scoring.shapes import BUNDLED_ROOT, SHAPES
from benchmarks.scoring.shapes import model_folder as random_folder
from training.tokenizer import VOCAB_SIZE, save_tokenizer

POLICY = BUNDLED_ROOT / "rung-arith-policy" / "1"


def model_folder(name: str, root: Path) -> Path:
    """The folder of a model by name, with a tokenizer; a random one is written under `root`."""
    if name == "bundled":
        return POLICY
    folder = random_folder(name, root)
    if not (folder / "tokenizer.json").exists():
        _write_tokenizer(folder, SHAPES[name].vocab_size)
    return folder


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """The bytes' tokenizer, and words of their own for all other ids: a random model writes any.

    No text is ever cut into these words, so that prompts are the bundled policy's.
    """
    save_tokenizer(folder, context_limit=512)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    words = {f"w{number}": number for number in range(VOCAB_SIZE, vocab_size)}
    content["model"]["vocab"] |= words
    path.write_text(json.dumps(content), encoding="utf-8")
    for file in ("config.json", "generation_config.json"):
        known = json.loads((folder / file).read_text())
        ids = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": VOCAB_SIZE - 1}
        (folder / file).write_text(json.dumps(known | ids, indent=1))
