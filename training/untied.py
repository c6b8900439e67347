"""A model folder whose output layer is a tensor of its own, and not the word embeddings again.

    python -m training.untied models/policy/1 runs/policy-for-vllm

What vLLM is started on where it runs on a CPU and gets new weights as a policy trains. There it
packs every matrix for oneDNN, and keeps the pack of an output layer that is tied: reloading packs
the embeddings anew, but finds nothing in the files for the other layer ("ParallelLMHead: Failed to
load weights", `model_loader/reload/layerwise.py` of 0.32). It would go on with the one that it
began with, and say nothing.
"""

import argparse
import json
import shutil
from pathlib import Path

from prm.errors import RungError

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
BODY, HEAD = "model-body.safetensors", "model-head.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def untie(folder: Path) -> None:
    """Write the output layer of a folder that transformers saved beside its other tensors.

    One that has such a layer already stays as it is.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    config = json.loads((folder / "config.json").read_text())
    if not config.get("tie_word_embeddings", False):
        return
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text())
    else:
        # A folder with a file of this name is read as if it were all of it.
        (folder / WHOLE).rename(folder / BODY)
        with safe_open(folder / BODY, "pt") as file:
            index = {"metadata": {}, "weight_map": dict.fromkeys(file.keys(), BODY)}
    (embeddings,) = [name for name in index["weight_map"] if name.endswith("embed_tokens.weight")]
    with safe_open(folder / index["weight_map"][embeddings], "pt") as file:
        save_file(
            {"lm_head.weight": file.get_tensor(embeddings)},
            folder / HEAD,
            metadata={"format": "pt"},
        )
    index["weight_map"]["lm_head.weight"] = HEAD
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))


def untied_copy(policy: Path, folder: Path) -> None:
    """A copy of `policy` in `folder`, which does not exist yet. Raises ModelFolderError."""
    from training.models import TrainedLM

    TrainedLM.load(policy).save(folder)
    for name in TOKENIZER_FILES:
        if (policy / name).is_file():
            shutil.copyfile(policy / name, folder / name)
    untie(folder)


def main() -> None:
    """Read the command line and copy."""
    parser = argparse.ArgumentParser(
        prog="python -m training.untied",
        description="Copy a policy for a vLLM on a CPU that is given new weights.",
    )
    parser.add_argument("policy", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.folder.exists():
        raise SystemExit(f"error: {arguments.folder} exists; name a new folder")
    try:
        untied_copy(arguments.policy, arguments.folder)
    except RungError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
