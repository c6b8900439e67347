"""Checkpoints that tests of this folder share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import checkpoint


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint of each family, made once; not to be changed."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = checkpoint(tmp_path_factory.mktemp(family), family)
        return made[family]

    return folder
