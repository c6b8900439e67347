"""Reading and writing the small files of a model folder."""

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prm.errors import ModelFolderError

# Told the bytes that were read since it was told last.
Report = Callable[[int], None]
_CHUNK_BYTES = 4 << 20
# The disk, the user's share of it, the largest file.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


def replace_durably(path: Path, text: str) -> None:
    """Replace a file at once and for good: a reader finds the old text or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        write_durably(part, text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """fsync a folder: the name of a file is on disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_out_of_space(error: BaseException | None) -> bool:
    """Whether this error, or what it came of, is a disk that takes no more.

    safetensors tells it in words alone.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        if any(f"(os error {number})" in str(error) for number in _NO_ROOM):
            return True
        error = error.__cause__
    return False


def hash_file(path: Path, report: Report | None = None) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            if report is not None:
                report(len(chunk))
    return digest.hexdigest()


def copy_durably(source: Path, target: Path, report: Report | None = None) -> str:
    """Copy and fsync; returns the SHA-256 of what was copied, in hexadecimal."""
    digest = hashlib.sha256()
    with source.open("rb") as file, target.open("xb") as copy:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            copy.write(chunk)
            if report is not None:
                report(len(chunk))
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest()
