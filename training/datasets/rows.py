"""Rows of a data set as its files hold them, each with its place for errors.

A file is JSON Lines (plain or .gz), a JSON list, Parquet, or an Arrow stream; a folder is what the
Hugging Face hub and `datasets.save_to_disk` make of one: the data files of one split, in order.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm.errors import InvalidInput

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".arrow")
# Beside data in such folders, and no data.
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `where` names file and line (JSON Lines) or row, both counted from 1."""

    where: str
    values: dict[str, Any]


def read_rows(path: Path, split: str = "train") -> Iterator[Row]:
    """Every row of a file, or of the files of a folder's `split`.

    Raises InvalidInput naming file and line for what is missing, not UTF-8, not JSON, or no row.
    """
    if path.is_dir():
        for file in _files_of(path, split):
            yield from _read_file(file)
        return
    if not path.is_file():
        raise InvalidInput(f"{path}: there is no such file or folder", param="path")
    yield from _read_file(path)


def _files_of(folder: Path, split: str) -> list[Path]:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.name.endswith(_SUFFIXES) and file.name not in _NOT_DATA and file.is_file()
    )
    if not files:
        raise InvalidInput(
            f"{folder}: holds no data file; it needs one that ends with {', '.join(_SUFFIXES)}",
            param="path",
        )
    # By the hub's habits: train.jsonl, data/train-00000-of-00002.parquet, train/data-00000.arrow.
    named = [file for file in files if split in _words_of(file.relative_to(folder))]
    if named:
        return named
    if len(files) == 1:
        return files
    names = ", ".join(str(file.relative_to(folder)) for file in files[:5])
    raise InvalidInput(
        f"{folder}: no file is of the split {split!r} among {names}; name a split, or one file",
        param="split",
    )


def _words_of(path: Path) -> set[str]:
    text = str(path)
    for mark in "/\\-_.":
        text = text.replace(mark, " ")
    return set(text.split())


def _read_file(path: Path) -> Iterator[Row]:
    if path.suffix in (".parquet", ".arrow"):
        yield from _read_columns(path)
    elif path.suffix == ".json":
        yield from _read_list(path)
    else:
        yield from _read_lines(path)


def _read_lines(path: Path) -> Iterator[Row]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}, line {number}"
                if text := _decoded(line, where).strip():
                    yield _row(where, _parsed(text, where))
    except (OSError, EOFError) as error:
        raise InvalidInput(f"{path}: cannot be read: {error}", param="path") from error


def _read_list(path: Path) -> Iterator[Row]:
    text = _decoded(path.read_bytes(), str(path))
    rows = _parsed(text, str(path))
    if not isinstance(rows, list):
        raise InvalidInput(
            f"{path}: a .json file holds a list of rows, and this holds a "
            f"{type(rows).__name__}; write the rows as a list, or one per line as .jsonl",
            param="path",
        )
    for number, values in enumerate(rows, start=1):
        yield _row(f"{path}, row {number}", values)


def _read_columns(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InvalidInput(
            f"{path}: Parquet and Arrow files are read with pyarrow, which is not installed; "
            "pip install 'rung[train]', or write the data set as .jsonl",
            param="path",
        ) from error
    try:
        if path.suffix == ".parquet":
            batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        else:
            batches = iter(pyarrow.ipc.open_stream(path.read_bytes()))
        number = 0
        for batch in batches:
            for values in batch.to_pylist():
                number += 1
                yield _row(f"{path}, row {number}", values)
    except (OSError, pyarrow.ArrowException) as error:
        raise InvalidInput(f"{path}: cannot be read: {error}", param="path") from error


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{where}: byte {error.start + 1} is {raw[error.start]:#04x}, which is not UTF-8; "
            "convert the file (iconv -t UTF-8)",
            param="path",
        ) from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: not JSON: {error}", param="path") from error


def _row(where: str, values: Any) -> Row:
    if not isinstance(values, dict):
        raise InvalidInput(
            f"{where}: a row is a JSON object with a field per column, and this is a "
            f"{type(values).__name__}",
            param="path",
        )
    return Row(where, values)
