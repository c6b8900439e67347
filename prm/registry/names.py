"""What the files of a version are called; those of its weights: `prm/weights.py`."""

from pathlib import Path

MANIFEST = "manifest.json"
STABLE = "STABLE"
LIVE = "live.json"
REQUIRED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
# Formats that run code when they are loaded.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".joblib")
CODE_SUFFIXES = (".py", ".so")


def key_of(folder: Path) -> str:
    """`name@version` of a version in its place, `models/<name>/<version>`."""
    return f"{folder.parent.name}@{folder.name}"
