"""Which files make a version, and the remedy where one is missing: done as it is said."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Tokenizer

from prm.checkpoint import Checkpoint
from prm.errors import ModelFolderError
from prm.importing.files import choose_files
from tests.imports import copied, imported


def run_remedy(error: ModelFolderError) -> None:
    """Do what the message says."""
    program, *arguments = shlex.split(str(error).splitlines()[-1].strip())
    assert program == "python"
    subprocess.run([sys.executable, *arguments], check=True)


@pytest.mark.slow
def test_pickled_weights_are_converted_by_the_remedy(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(folders, "qwen", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[:5], names[5:]), start=1):
        path = folder / f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, path)
    torch.save({"lr": 1}, folder / "training_args.bin")
    with pytest.raises(ModelFolderError, match=r"pickles .*which can run code") as error:
        choose_files(folder)
    run_remedy(error.value)
    assert choose_files(folder).left_behind[0] == "pytorch_model-00001-of-00002.bin"
    again = load_file(folder / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.slow
def test_a_missing_tokenizer_file_is_made_by_the_remedy(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(folders, "generative", tmp_path)
    ours = Checkpoint.open(folder).tokenizer.encode_response("Step 1: 3+4=7, naïve")
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"})
    )
    made = Qwen2Tokenizer.from_pretrained(folder).backend_tokenizer.model.save(str(folder))
    assert {Path(name).name for name in made} == {"vocab.json", "merges.txt"}
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        ModelFolderError, match=r"make it from vocab\.json and merges\.txt"
    ) as error:
        choose_files(folder)
    run_remedy(error.value)
    assert Checkpoint.open(folder).tokenizer.encode_response("Step 1: 3+4=7, naïve") == ours


BREAKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"take it from the model that"),
    "no tokenizer config": (
        lambda f: (f / "tokenizer_config.json").unlink(),
        r"config\.json: miss",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json: missing; no version"),
    "no architecture": (lambda f: (f / "config.json").write_text("{}"), r"names no architectures"),
    "an adapter without its configuration": (
        lambda f: (f / "model.safetensors").rename(f / "adapter_model.safetensors"),
        r"adapter_config\.json: missing, and adapter_model\.safetensors is there",
    ),
    "another file name": (
        lambda f: (f / "model.safetensors").rename(f / "weights.safetensors"),
        r"holds weights\.safetensors, and neither .*; name one file model\.safetensors",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"holds no weights"),
    "a lost shard": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "model-1.safetensors"}}'
        ),
        r"model-1\.safetensors: missing, and model\.safetensors\.index\.json lists it",
    ),
    "an escaping shard": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}'),
        r"'\.\./b' is not a plain file name",
    ),
    "no such folder": (lambda f: shutil.rmtree(f), r"no such folder; download the checkpoint"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_an_incomplete_checkpoint_is_refused_with_the_remedy(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(folders, "qwen", tmp_path)
    damage, message = BREAKAGES[name]
    damage(folder)
    with pytest.raises(ModelFolderError, match=message):
        imported(folder, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_only_data_is_copied_and_the_rest_is_listed(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(folders, "qwen", tmp_path)
    for name in ("modeling_qwen2_rm.py", "README.md", "pytorch_model.bin"):
        (folder / name).write_text("x")
    (folder / "original").mkdir()
    files = choose_files(folder)
    assert sorted(files.paths) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert files.left_behind == [
        "README.md",
        "modeling_qwen2_rm.py",
        "original/",
        "pytorch_model.bin",
    ]
    assert "auto_map" in files.notes[0]
