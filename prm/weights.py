"""The tensors of a model folder by name: in which file each lies, and its shape.

One rule for whoever looks: an adapter's file beside an adapter's configuration, else the shards of
an index, each for the tensors that the index says are in it, else the one file that has all. Read
from the files' headers: no weights are loaded, and torch is not needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from prm.errors import ModelFolderError
from prm.files import read_json

# Weights lie in one file, or in shards that an index lists.
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# LoRA weights, which are run on those of the recipe's reference.
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies."""

    path: Path
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder's weights. Raises ModelFolderError naming the file."""
    tensors: dict[str, StoredTensor] = {}
    for path, names in _names_by_file(folder).items():
        try:
            with safe_open(path, framework="numpy") as file:
                for name in names or file.keys():
                    shape = tuple(file.get_slice(name).get_shape())
                    tensors[name] = StoredTensor(path, shape)
        except (SafetensorError, OSError) as error:
            raise ModelFolderError(path, f"not a readable safetensors file: {error}") from error
    return tensors


def shard_names(index: Path) -> Mapping[str, str]:
    """The shard of every tensor, as an index lists it. Raises ModelFolderError."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelFolderError(index, "field weight_map: not a table of shards")
    for name in set(map(str, shards.values())):
        if Path(name).name != name:
            raise ModelFolderError(index, f"{name!r} is not a plain file name")
    return {tensor: str(shard) for tensor, shard in shards.items()}


def _names_by_file(folder: Path) -> dict[Path, list[str]]:
    """The weight files, and the tensors to be taken from each; no names are all of them."""
    if (folder / ADAPTER_CONFIG).is_file():
        return {folder / ADAPTER: []}
    if not (folder / INDEX).is_file():
        return {folder / WHOLE: []}
    files: dict[Path, list[str]] = {}
    for tensor, shard in shard_names(folder / INDEX).items():
        files.setdefault(folder / shard, []).append(tensor)
    return files
