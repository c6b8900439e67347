"""What was measured or fitted for a PRM version and a policy, on disk beside the calibrations.

    models/<name>/calibration/<version>/selection/<policy>.json   see `search/selection.py`
    models/<name>/calibration/<version>/curves/<policy>.json      see `search/curves.py`

A version's folder never changes; what is learnt of it lies beside it and names its weights.
"""

import os
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from prm.calibration import PolicyName
from prm.calibration_files import file_of
from prm.errors import ModelFolderError
from prm.files import read_json, write_durably
from prm.manifest import ModelRef, ModelVersion
from prm.validation import first_problem


class Record(BaseModel):
    """Closed, immutable, and of one PRM version and one policy. A subclass names its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: ClassVar[str]

    schema_version: Literal[1] = 1
    prm: ModelRef
    policy: PolicyName
    created: int
    command: str


R = TypeVar("R", bound=Record)


def path_of(kind: type[Record], version: ModelVersion, policy: str) -> Path:
    """Where this kind of record for this version and policy lies."""
    beside = file_of(version, policy)
    return beside.parent / kind.folder / beside.name


def save(version: ModelVersion, record: Record) -> Path:
    """Write it to its place, over an older one for the same policy, at once or not at all."""
    assert record.prm == version.ref
    path = path_of(type(record), version, record.policy)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{os.getpid()}.draft"
    write_durably(draft, record.model_dump_json(indent=2) + "\n")
    draft.rename(path)
    return path


def load(kind: type[R], version: ModelVersion, policy: str) -> R | None:
    """The record for this policy, also where NAME@VERSION is asked for and NAME's is there.

    None where there is none. Raises ModelFolderError where it is damaged or of other weights.
    """
    for name in dict.fromkeys((policy, policy.partition("@")[0])):
        path = path_of(kind, version, name)
        if path.is_file():
            return _read(kind, path, version, name)
    return None


def _read(kind: type[R], path: Path, version: ModelVersion, policy: str) -> R:
    remedy = "remove it, or measure anew with `rung eval rerank`"
    try:
        record = kind.model_validate(read_json(path))
    except ValidationError as error:
        raise ModelFolderError(path, f"field {first_problem(error)}; {remedy}") from error
    if record.prm != version.ref:
        raise ModelFolderError(
            path,
            f"is of {record.prm.key} with the weights {record.prm.weights_sha256[:12]}…, and "
            f"{version.key} has {version.weights_sha256[:12]}…; {remedy}",
        )
    if record.policy != policy:
        raise ModelFolderError(path, f"is for policy {record.policy!r}; {remedy}")
    return record
