"""A model folder before it is a version: what can be told from it without loading any weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prm.chat import ChatTokenizer
from prm.files import read_json
from prm.weights import stored_tensors


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
        return cls(
            folder=folder,
            config=read_json(folder / "config.json"),
            shapes={name: tensor.shape for name, tensor in stored_tensors(folder).items()},
            tokenizer=ChatTokenizer(folder),
        )

    @property
    def architecture(self) -> str:
        """The first architecture that the configuration names, or an empty string."""
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else ""
