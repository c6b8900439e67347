"""Publishing a version, and which version answers for a name."""

import json
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from prm.errors import ModelFolderError
from prm.files import Report, copy_durably, read_json, write_durably
from prm.manifest import NAME_PATTERN, FileRecord, ModelVersion, PolicyManifest, PrmManifest
from prm.registry.names import LIVE, MANIFEST, STABLE
from prm.registry.version import load_version


def publish(
    root: Path,
    staged: Path,
    manifest: PolicyManifest | PrmManifest,
    *,
    live: bool = True,
    report: Report | None = None,
) -> ModelVersion:
    """Copy the staged folder's files to their place; a reader sees all of them or nothing.

    The manifest's `files` are filled in from what is copied, and the copy is verified before it can
    be seen. `live` makes it the version that answers for its name. `report` is told of twice the
    bytes that are staged. Raises FileExistsError when the version is already there (versions never
    change), ModelFolderError when the copy is not a version, OSError when it cannot be written; in
    each case nothing is left behind.
    """
    target = root / manifest.name / manifest.version
    if target.exists():
        raise FileExistsError(f"{target} is already published; choose another version")
    made = [folder for folder in (target.parent, root) if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".publish-", dir=target.parent) as holding:
            landed = Path(holding) / "version"
            _land(staged, landed, manifest, report)
            manifest = load_version(landed, report).manifest
            landed.rename(target)
    except BaseException:
        for folder in made:
            with suppress(OSError):  # somebody else's by now, or never made
                folder.rmdir()
        raise
    if live:
        make_live(root, manifest.name, manifest.version)
    return ModelVersion(target, manifest)


def make_live(root: Path, name: str, version: str) -> None:
    """Let a published version answer for its name."""
    pointer = root / name / f".{LIVE}.{os.getpid()}"
    write_durably(pointer, json.dumps({"live": version}) + "\n")
    pointer.rename(root / name / LIVE)


def live_version(root: Path, name: str) -> str:
    """The version that answers for a name. Raises ModelFolderError when there is none."""
    live = read_json(root / name / LIVE).get("live")
    if not isinstance(live, str) or not re.match(NAME_PATTERN, live):
        raise ModelFolderError(root / name / LIVE, "field live: not a version name")
    return live


def _land(
    staged: Path, landed: Path, manifest: PolicyManifest | PrmManifest, report: Report | None
) -> None:
    landed.mkdir()
    files = {}
    for path in sorted(staged.iterdir()):
        if path.is_file() and path.name not in (MANIFEST, STABLE):
            sha256 = copy_durably(path, landed / path.name, report)
            files[path.name] = FileRecord(bytes=(landed / path.name).stat().st_size, sha256=sha256)
    manifest = manifest.model_copy(update={"files": files})
    write_durably(landed / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    write_durably(landed / STABLE, "")
