"""Reading one version's folder, every file of it verified."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from prm.errors import ModelFolderError
from prm.files import Report, hash_file, read_json
from prm.manifest import FileRecord, ManifestFile, ModelVersion, PolicyManifest, PrmManifest
from prm.registry.fit import check_adapter, check_fit
from prm.registry.names import (
    CODE_SUFFIXES,
    MANIFEST,
    PICKLE_SUFFIXES,
    REQUIRED_FILES,
    STABLE,
)
from prm.weights import ADAPTER, ADAPTER_CONFIG, INDEX, WHOLE, shard_names


def load_version(folder: Path, report: Report | None = None) -> ModelVersion:
    """Read one version's manifest and check every file against it.

    Raises ModelFolderError naming the file: no STABLE marker, a missing file, a size or hash that
    differs, a pickle or a program where only data may lie, a manifest that does not fit its config.
    """
    with _readable(folder):
        return _load(folder, report)


def read_version(folder: Path) -> ModelVersion:
    """Like `load_version`, but takes the hashes on trust: for a folder that was just verified."""
    with _readable(folder):
        return _read(folder)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """A file that cannot be read makes no version, nor does a folder that is removed meanwhile."""
    try:
        yield
    except OSError as error:
        raise ModelFolderError(folder, f"cannot be read: {error.strerror or error}") from error


def _load(folder: Path, report: Report | None) -> ModelVersion:
    version = _read(folder)
    listed = {*version.manifest.files, MANIFEST, STABLE}
    for path in sorted(folder.iterdir()):
        # A loader could pick it up beside, or instead of, what was verified.
        if path.name not in listed:
            raise ModelFolderError(path, f"not listed under files in {MANIFEST}; remove it")
    for name in sorted({*REQUIRED_FILES, *_weight_files(folder), *version.manifest.files}):
        _check_file(folder, name, version.manifest.files, report)
    return version


def _read(folder: Path) -> ModelVersion:
    if not (folder / STABLE).is_file():
        raise ModelFolderError(folder / STABLE, "missing: this version was never fully published")
    manifest = _read_manifest(folder / MANIFEST)
    _refuse_code(folder)
    version = ModelVersion(folder, manifest)
    check_fit(version)
    check_adapter(version)
    return version


def _read_manifest(path: Path) -> PolicyManifest | PrmManifest:
    try:
        manifest = ManifestFile.model_validate({"manifest": read_json(path)}).manifest
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        raise ModelFolderError(path, f"field {field}: {first['msg']}") from error
    return manifest


def _refuse_code(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise ModelFolderError(
                path, "a pickle-based format can run code when loaded; convert it to safetensors"
            )
        if path.suffix.lower() in CODE_SUFFIXES:
            raise ModelFolderError(path, "a model folder holds data only; remote code is never run")


def _weight_files(folder: Path) -> set[str]:
    """The files that the weights must lie in."""
    if (folder / ADAPTER_CONFIG).is_file():
        return {ADAPTER, ADAPTER_CONFIG}
    if not (folder / INDEX).is_file():
        return {WHOLE}
    return {INDEX, *shard_names(folder / INDEX).values()}


def _check_file(
    folder: Path, name: str, files: Mapping[str, FileRecord], report: Report | None
) -> None:
    path = folder / name
    if Path(name).name != name or len(name) > 255:
        raise ModelFolderError(folder / MANIFEST, f"files: {name!r} is not a plain file name")
    if path.is_symlink() or not path.is_file():
        raise ModelFolderError(path, "missing, or not a plain file")
    if name not in files:
        raise ModelFolderError(path, f"not listed under files in {MANIFEST}")
    if path.stat().st_size != files[name].bytes:
        raise ModelFolderError(
            path, f"{path.stat().st_size} bytes, but {MANIFEST} says {files[name].bytes}"
        )
    if (found := hash_file(path, report)) != files[name].sha256:
        raise ModelFolderError(
            path, f"its SHA-256 is {found[:12]}…, but {MANIFEST} says {files[name].sha256[:12]}…"
        )
