"""Worked numbers of the papers' formulas. They lie beside the repository, not in it."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "vectors"
FILES = ("prime_lgrpo.json", "prl_repirl.json")


def block(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and expected values of one block; skips the test where the files are not there."""
    entry = blocks()[name]
    return entry["inputs"], entry["expected"]


@cache
def blocks() -> dict[str, Any]:
    """All blocks by their names."""
    missing = [name for name in FILES if not (FOLDER / name).is_file()]
    if missing:
        pytest.skip(f"no worked numbers: {missing[0]} is not in {FOLDER}")
    found = [json.loads((FOLDER / name).read_text(encoding="utf-8")) for name in FILES]
    return {key: value for part in found for key, value in part.items() if key != "_meta"}


def doubles(values: Any) -> Tensor:
    """A float64 tensor: the numbers were worked out in that precision."""
    return torch.tensor(values, dtype=torch.float64)


def flags(values: Any) -> Tensor:
    """A mask written as numbers."""
    return torch.tensor(values) > 0


def padded(rows: Sequence[Sequence[float]]) -> Tensor:
    """Rows of unlike length side by side, 0 behind their ends."""
    longest = max(len(row) for row in rows)
    return doubles([[*row, *[0.0] * (longest - len(row))] for row in rows])


def mask_of(rows: Sequence[Sequence[object]]) -> Tensor:
    """True on the tokens of rows of unlike length."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[place < len(row) for place in range(longest)] for row in rows])


def ids_of(rows: Sequence[Sequence[int] | str]) -> Tensor:
    """Token ids, padded with 0; letters are their code points."""
    longest = max(len(row) for row in rows)
    numbers = [[ord(x) if isinstance(x, str) else x for x in row] for row in rows]
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in numbers])


def one_group(rows: int) -> Tensor:
    """All rows in group 0."""
    return torch.zeros(rows, dtype=torch.long)


def close(ours: Tensor, expected: Any, atol: float = 1e-6, rtol: float = 1e-5) -> None:
    """Equal to what was worked out."""
    wanted = expected if isinstance(expected, Tensor) else doubles(expected)
    torch.testing.assert_close(ours.double(), wanted.double(), atol=atol, rtol=rtol)
