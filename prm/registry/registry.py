"""All versions under one folder that answer requests, and what each is read together with."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from prm.calibration_files import CalibrationFolder
from prm.errors import ModelFolderError
from prm.manifest import ModelRef, ModelVersion
from prm.registry.fit import check_reference, references_of
from prm.registry.names import LIVE, MANIFEST
from prm.registry.pointer import Pointer, read_pointer
from prm.registry.version import load_version


class Registry:
    """The versions under one root folder, verified. Raises ModelFolderError for a bad one.

    It never changes: what is published later is in another one, see `with_pointers`.
    """

    def __init__(
        self, root: Path, versions: Sequence[ModelVersion], pointers: Mapping[str, Pointer]
    ) -> None:
        self.root = root
        self._versions = {version.key: version for version in versions}
        self._pointers = dict(pointers)
        # Recipes are parsed once: every request asks.
        self._references = {version.key: references_of(version) for version in versions}
        self._calibrations = {version.key: CalibrationFolder(version) for version in versions}

    @classmethod
    def open(cls, root: Path) -> "Registry":
        """Read and verify every version under `root` that answers, and the references they pin."""
        if not root.is_dir():
            raise ModelFolderError(root, "no such folder")
        pointers = read_pointers(root)
        if not pointers:
            raise ModelFolderError(root, f"no model in it (no <name>/{LIVE})")
        return cls.of(root, pointers, {})

    @classmethod
    def of(
        cls, root: Path, pointers: Mapping[str, Pointer], known: Mapping[str, ModelVersion]
    ) -> "Registry":
        """The versions that these pointers name, and the references they pin.

        `known` are versions that were verified before; they never change.
        """
        versions: dict[str, ModelVersion] = {}
        for name, pointer in pointers.items():
            for version_id in pointer.served:
                version = _load(root, name, version_id, known)
                versions[version.key] = version
        for version in list(versions.values()):
            for pinned in references_of(version):
                reference = _resolve_reference(root, version, pinned, {**known, **versions})
                check_reference(version, reference)
                versions[reference.key] = reference
        return cls(root, list(versions.values()), pointers)

    def with_pointers(self, pointers: Mapping[str, Pointer]) -> "Registry":
        """What these pointers name; only versions that this registry has not are verified."""
        return Registry.of(self.root, pointers, self._versions)

    def __iter__(self) -> Iterator[ModelVersion]:
        return iter(self._versions.values())

    @property
    def pointers(self) -> Mapping[str, Pointer]:
        """What answers for each name."""
        return self._pointers

    def live(self) -> list[ModelVersion]:
        """The version that answers for each name."""
        return [self._versions[f"{name}@{p.live}"] for name, p in self._pointers.items()]

    def references_of(self, version: ModelVersion) -> list[ModelVersion]:
        """The versions that this one is read together with: an implicit PRM's frozen reference."""
        return [self._versions[pinned.key] for pinned in self._references[version.key]]

    def calibrations(self, version: ModelVersion) -> CalibrationFolder:
        """What was fitted to this version's scores."""
        return self._calibrations[version.key]

    def get(self, key: str) -> ModelVersion | None:
        """The version called `name` (the live one) or `name@version`, or None."""
        if "@" not in key and key in self._pointers:
            key = f"{key}@{self._pointers[key].live}"
        return self._versions.get(key)


def read_pointers(root: Path) -> dict[str, Pointer]:
    """What answers for each name under `root`. Raises ModelFolderError for a broken file."""
    return {
        folder.name: read_pointer(root, folder.name)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and (folder / LIVE).exists()
    }


def _load(
    root: Path, name: str, version_id: str, known: Mapping[str, ModelVersion]
) -> ModelVersion:
    version = known.get(f"{name}@{version_id}") or load_version(root / name / version_id)
    if (version.manifest.name, version.manifest.version) != (name, version_id):
        raise ModelFolderError(
            version.folder / MANIFEST, f"says {version.key}, but lies under {name}/{version_id}"
        )
    return version


def _resolve_reference(
    root: Path, version: ModelVersion, pinned: ModelRef, known: Mapping[str, ModelVersion]
) -> ModelVersion:
    reference = _load(root, pinned.name, pinned.version, known)
    if reference.weights_sha256 != pinned.weights_sha256:
        raise ModelFolderError(
            reference.folder,
            f"is not the reference that {version.key} was trained against: the SHA-256 of its "
            f"weights is {reference.weights_sha256[:12]}…, wanted {pinned.weights_sha256[:12]}…",
        )
    return reference
