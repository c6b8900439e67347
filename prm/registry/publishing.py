"""Publishing a version: a reader sees all of it or nothing."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from prm.errors import ModelFolderError
from prm.files import Report, copy_durably, sync_folder, write_durably
from prm.manifest import FileRecord, ModelVersion, PolicyManifest, PrmManifest
from prm.registry.fit import references_of
from prm.registry.holding import LOCK, changing_versions, holding_folder
from prm.registry.names import MANIFEST, STABLE
from prm.registry.pointer import promote
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
    change), ModelFolderError when the copy is not a version or its reference is not there, OSError
    when it cannot be written; in each case nothing is left behind. Killed, it leaves a folder that
    no reader looks into and that the next publisher of the name removes.
    """
    target = root / manifest.name / manifest.version
    if target.exists():
        raise FileExistsError(_taken(target))
    made = [folder for folder in (target.parent, root) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with holding_folder(root, manifest.name) as holding:
            landed = holding / "version"
            _land(staged, landed, manifest, report)
            version = load_version(landed, report)
            with changing_versions(root):
                _check_references(root, version)
                if target.exists():  # somebody published it in the meantime
                    raise FileExistsError(_taken(target))
                landed.rename(target)
            sync_folder(target.parent)
    except BaseException:
        _remove_empty(root, made)
        raise
    if live:
        promote(root, manifest.name, manifest.version)
    return ModelVersion(target, version.manifest)


def _check_references(root: Path, version: ModelVersion) -> None:
    """What it is read together with is there, and stays: retention asks who needs a version."""
    for pinned in references_of(version):
        if not (root / pinned.name / pinned.version / STABLE).is_file():
            raise ModelFolderError(
                version.folder / MANIFEST, f"its reference {pinned.key} is not published in {root}"
            )


def _remove_empty(root: Path, made: Sequence[Path]) -> None:
    if root in made:
        (root / LOCK).unlink(missing_ok=True)
    for folder in made:
        with suppress(OSError):  # somebody else's by now, or never made
            folder.rmdir()


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
