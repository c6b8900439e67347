"""Imports of checkpoints, as `rung models import` makes them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prm.importing import Asked, Imported, ImportRequest, import_checkpoint

# What has to be said of those that no file tells.
SAID: dict[str, Asked] = {"generative": Asked(recipe="genprm")}


def quiet(what: str, done: int, total: int) -> None:
    """Nobody watches."""


def imported(folder: Path, root: Path, watch: Any = quiet, **options: Any) -> Imported:
    """Import this folder into that model folder; what is not said is `rung models import`'s."""
    request: dict[str, Any] = {"name": "new", "version": "1", **options}
    return import_checkpoint(ImportRequest(folder=folder, root=root, **request), watch)


def copied(folders: Callable[[str], Path], family: str, to: Path) -> Path:
    """A copy of the shared checkpoint of a family, to be changed."""
    return shutil.copytree(folders(family), to / "checkpoint")
