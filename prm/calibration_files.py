"""Calibrations on disk, beside the version that they were fitted to.

    models/<name>/calibration/<version>/<policy>.json

A version's folder never changes, so its calibrations lie beside it and name the weights that they
are of. They may come, go and change while a server runs.
"""

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from pydantic import ValidationError

from prm.calibration import Calibration
from prm.errors import ModelFolderError
from prm.files import read_json, write_durably
from prm.manifest import CALIBRATION_FOLDER, ModelVersion
from prm.validation import first_problem

logger = logging.getLogger(__name__)

_REMEDY = "remove it, or fit anew with `rung eval calibrate`"


class CalibrationFolder:
    """The calibrations of one version. Making one raises ModelFolderError naming a bad file.

    `has_changed` only looks at names and times and is cheap; `read_again` reads, in any thread.
    """

    def __init__(self, version: ModelVersion) -> None:
        self._version = version
        self._reading = threading.Lock()
        self._stamps = _stamps(_folder(version))
        self._records = {path: _read(path, version) for path in sorted(self._stamps)}

    @property
    def by_policy(self) -> Mapping[str, Calibration]:
        """What was last read, by policy."""
        return {record.policy: record for record in self._records.values()}

    def has_changed(self) -> bool:
        """Whether a file came, went or was written since they were last read."""
        try:
            return _stamps(_folder(self._version)) != self._stamps
        except OSError:  # the disk is away: what was read stays
            return False

    def read_again(self) -> None:
        """Read what changed. A damaged file is logged, and what it held before stays."""
        with self._reading:
            try:
                stamps = _stamps(_folder(self._version))
            except OSError:
                return
            records = {}
            for path in sorted(stamps):
                record = self._records.get(path)
                if stamps[path] != self._stamps.get(path):
                    record = self._read_or_keep(path, record)
                if record is not None:
                    records[path] = record
            # Taken before the reading: a file that was written meanwhile is read once more.
            self._stamps, self._records = stamps, records

    def _read_or_keep(self, path: Path, known: Calibration | None) -> Calibration | None:
        try:
            record = _read(path, self._version)
        except ModelFolderError as error:
            logger.error("%s; %s", error, "the one before stays" if known else "it is not used")
            return known
        logger.info("%s: read, fitted for %s", path, record.policy)
        return record


def file_of(version: ModelVersion, policy: str) -> Path:
    """Where the calibration of this version for this policy lies."""
    return _folder(version) / f"{quote(policy, safe='@+')}.json"


def save(version: ModelVersion, calibration: Calibration) -> Path:
    """Write it to its place, over an older one for the same policy, at once or not at all."""
    assert _is_of(calibration, version)
    path = file_of(version, calibration.policy)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{os.getpid()}.draft"
    write_durably(draft, calibration.model_dump_json(indent=2) + "\n")
    draft.rename(path)
    return path


class _Stamp(NamedTuple):
    """Differs when a file was written or replaced; the inode where two saves share a clock tick."""

    modified_ns: int
    bytes: int
    inode: int


def _stamps(folder: Path) -> dict[Path, _Stamp]:
    """The folder's calibrations, without reading them. Raises OSError when it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            named = [e for e in entries if e.name.endswith(".json") and e.name[0] != "."]
    except FileNotFoundError:
        return {}
    stamps = {}
    for entry in named:
        try:
            found = entry.stat()
        except FileNotFoundError:  # removed just now, or a link to nothing
            continue
        stamps[Path(entry.path)] = _Stamp(found.st_mtime_ns, found.st_size, found.st_ino)
    return stamps


def _read(path: Path, version: ModelVersion) -> Calibration:
    try:
        calibration = Calibration.model_validate(read_json(path))
    except ValidationError as error:
        raise ModelFolderError(path, f"field {first_problem(error)}; {_REMEDY}") from error
    if not _is_of(calibration, version):
        pinned = calibration.prm
        raise ModelFolderError(
            path,
            f"was fitted to {pinned.key} with the weights {pinned.weights_sha256[:12]}…, and "
            f"{version.key} has {version.weights_sha256[:12]}…; {_REMEDY}",
        )
    if file_of(version, calibration.policy) != path:
        raise ModelFolderError(
            path, f"holds the calibration for policy {calibration.policy!r}; {_REMEDY}"
        )
    return calibration


def _is_of(calibration: Calibration, version: ModelVersion) -> bool:
    return calibration.prm == version.ref


def _folder(version: ModelVersion) -> Path:
    return version.folder.parent / CALIBRATION_FOLDER / version.folder.name
