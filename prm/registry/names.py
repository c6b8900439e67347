"""What the files of a version are called."""

MANIFEST = "manifest.json"
STABLE = "STABLE"
LIVE = "live.json"
REQUIRED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
# Weights lie in one file, or in shards that an index lists.
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# LoRA weights, which are run on those of the recipe's reference.
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Formats that run code when they are loaded.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".joblib")
CODE_SUFFIXES = (".py", ".so")
