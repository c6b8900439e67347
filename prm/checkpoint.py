"""A model folder before it is a version: what can be told from it without loading any weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from prm.chat import ChatTokenizer
from prm.errors import ModelFolderError
from prm.files import read_json


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Configuration, tokenizer, and the shape of every tensor by its name.

    `asked` are recipe settings that its importer names: where the files could be read in several
    ways, `asked["name"]` decides, and what stands in no file stands there.
    """

    folder: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    tokenizer: ChatTokenizer
    asked: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Read a folder's headers. Raises ModelFolderError naming the file that cannot be read."""
        shapes: dict[str, tuple[int, ...]] = {}
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise ModelFolderError(folder, "holds no *.safetensors file; convert the weights first")
        for path in paths:
            try:
                with safe_open(path, framework="numpy") as tensors:
                    for name in tensors.keys():  # noqa: SIM118 (no mapping)
                        shapes[name] = tuple(tensors.get_slice(name).get_shape())
            except (SafetensorError, OSError) as error:
                raise ModelFolderError(path, f"not a readable safetensors file: {error}") from error
        return cls(
            folder=folder,
            config=read_json(folder / "config.json"),
            shapes=shapes,
            tokenizer=ChatTokenizer(folder),
        )

    @property
    def architecture(self) -> str:
        """The first architecture that the configuration names, or an empty string."""
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else ""
