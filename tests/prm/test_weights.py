"""One rule says where each tensor of a folder lies: for detection and for the engine alike."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prm.errors import ModelFolderError
from prm.weights import ADAPTER, ADAPTER_CONFIG, INDEX, WHOLE, StoredTensor, stored_tensors


def save(path: Path, **shapes: tuple[int, ...]) -> None:
    save_file(
        {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}, path
    )


def write_index(folder: Path, **shards: str) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": shards}))


def test_one_file_holds_all_and_others_are_not_looked_at(tmp_path: Path) -> None:
    save(tmp_path / WHOLE, a=(2, 3), b=(4,))
    (tmp_path / "of-somebody-else.safetensors").write_bytes(b"no safetensors at all")
    assert stored_tensors(tmp_path) == {
        "a": StoredTensor(tmp_path / WHOLE, (2, 3)),
        "b": StoredTensor(tmp_path / WHOLE, (4,)),
    }


def test_of_shards_each_holds_what_the_index_says(tmp_path: Path) -> None:
    save(tmp_path / "1.safetensors", a=(2, 3), b=(9, 9), left=(1,))
    save(tmp_path / "2.safetensors", b=(4,))
    write_index(tmp_path, a="1.safetensors", b="2.safetensors")
    assert stored_tensors(tmp_path) == {
        "a": StoredTensor(tmp_path / "1.safetensors", (2, 3)),
        "b": StoredTensor(tmp_path / "2.safetensors", (4,)),
    }


def test_beside_an_adapter_s_configuration_the_adapter_s_are_meant(tmp_path: Path) -> None:
    save(tmp_path / ADAPTER, lora=(2, 3))
    (tmp_path / ADAPTER_CONFIG).write_text("{}")
    assert stored_tensors(tmp_path) == {"lora": StoredTensor(tmp_path / ADAPTER, (2, 3))}


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ({"a": "1.safetensors", "c": "1.safetensors"}, r"1\.safetensors: not a readable .*\bc\b"),
        ({"a": "3.safetensors"}, r"3\.safetensors: not a readable safetensors file"),
        ({"a": "../1.safetensors"}, r"'\.\./1\.safetensors' is not a plain file name"),
        ({}, "field weight_map: not a table of shards"),
    ],
)
def test_an_index_that_lies_is_refused(
    tmp_path: Path, shards: dict[str, str], message: str
) -> None:
    save(tmp_path / "1.safetensors", a=(2, 3))
    write_index(tmp_path, **shards)
    with pytest.raises(ModelFolderError, match=message):
        stored_tensors(tmp_path)


def test_no_weights_are_told(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"model\.safetensors: not a readable"):
        stored_tensors(tmp_path)
