"""Publishing a version: a reader sees all of it or nothing."""

import tempfile
from contextlib import suppress
from pathlib import Path

from prm.files import Report, copy_durably, write_durably
from prm.manifest import FileRecord, ModelVersion, PolicyManifest, PrmManifest
from prm.registry.names import MANIFEST, STABLE
from prm.registry.pointer import make_live
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
        raise FileExistsError(_taken(target))
    made = [folder for folder in (target.parent, root) if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".publish-", dir=target.parent) as holding:
            landed = Path(holding) / "version"
            _land(staged, landed, manifest, report)
            manifest = load_version(landed, report).manifest
            try:
                landed.rename(target)
            except OSError as error:
                if target.exists():  # somebody published it in the meantime
                    raise FileExistsError(_taken(target)) from error
                raise
    except BaseException:
        for folder in made:
            with suppress(OSError):  # somebody else's by now, or never made
                folder.rmdir()
        raise
    if live:
        make_live(root, manifest.name, manifest.version)
    return ModelVersion(target, manifest)


def next_version(root: Path, name: str) -> str:
    """The number after the greatest that is there. Who publishes at the same time may take it."""
    folder = root / name
    there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return str(1 + max((int(name) for name in there if name.isdecimal()), default=0))


def _taken(target: Path) -> str:
    return f"{target} is already published; choose another version"


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
