"""What the files of a version are called; those of its weights: `prm/weights.py`."""

MANIFEST = "manifest.json"
STABLE = "STABLE"
LIVE = "live.json"
REQUIRED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
# Formats that run code when they are loaded.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".joblib")
CODE_SUFFIXES = (".py", ".so")
