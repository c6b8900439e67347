"""What a gate said of a version: `models/<name>/gate/<version>.json`, beside it, not in it.

A version's own folder never changes, and a rejected one keeps its report and the reason.
"""

import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prm.errors import ModelFolderError
from prm.files import read_json, replace_durably

GATE = "gate"


class Verdict(BaseModel):
    """Whether a version may serve, why not, and the numbers that decided."""

    model_config = ConfigDict(frozen=True)

    version: str
    passed: bool
    reason: str | None = None
    created: int = Field(default_factory=lambda: int(time.time()))
    report: dict[str, Any] = {}


def read_verdict(root: Path, name: str, version: str) -> Verdict | None:
    """The gate's, or None where no gate was asked. Raises ModelFolderError for a broken file."""
    path = root / name / GATE / f"{version}.json"
    if not path.is_file():
        return None
    try:
        return Verdict.model_validate(read_json(path))
    except ValidationError as error:
        raise ModelFolderError(path, f"not a gate's verdict: {error.errors()[0]['msg']}") from error


def write_verdict(root: Path, name: str, verdict: Verdict) -> None:
    """Keep it. The last word about a version counts."""
    folder = root / name / GATE
    folder.mkdir(exist_ok=True)
    replace_durably(folder / f"{verdict.version}.json", verdict.model_dump_json(indent=1) + "\n")
