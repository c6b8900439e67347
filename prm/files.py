"""Reading and writing the small files of a model folder."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from prm.errors import ModelFolderError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelFolderError when it is missing, broken or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFolderError(path, "missing or not readable") from error
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(path, f"not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelFolderError(path, "not a JSON object")
    return content


def write_durably(path: Path, text: str) -> None:
    """Write and fsync: the text is on disk when this returns."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Put a file that was written by somebody else on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
