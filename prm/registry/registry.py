"""All versions under one folder: which answers for a name, and what each is read together with."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from prm.calibration_files import CalibrationFolder
from prm.errors import ModelFolderError
from prm.manifest import ModelRef, ModelVersion
from prm.registry.fit import check_reference, references_of
from prm.registry.names import LIVE, MANIFEST
from prm.registry.publishing import live_version
from prm.registry.version import load_version


class Registry:
    """The versions under one root folder, verified. Raises ModelFolderError for a bad one."""

    def __init__(self, versions: Sequence[ModelVersion], live: Mapping[str, str]) -> None:
        self._versions = {version.key: version for version in versions}
        self._live = dict(live)
        self._calibrations = {version.key: CalibrationFolder(version) for version in versions}

    @classmethod
    def open(cls, root: Path) -> "Registry":
        """Read and verify every live version under `root`, and the references they pin."""
        if not root.is_dir():
            raise ModelFolderError(root, "no such folder")
        versions: dict[str, ModelVersion] = {}
        live = {}
        for folder in sorted(root.iterdir()):
            if not folder.is_dir() or not (folder / LIVE).exists():
                continue
            version_id = live_version(root, folder.name)
            version = load_version(folder / version_id)
            _check_place(version, folder.name, version_id)
            versions[version.key] = version
            live[folder.name] = version_id
        if not versions:
            raise ModelFolderError(root, f"no model in it (no <name>/{LIVE})")
        for version in list(versions.values()):
            for pinned in references_of(version):
                reference = _resolve_reference(root, version, pinned, versions)
                check_reference(version, reference)
                versions[reference.key] = reference
        return cls(list(versions.values()), live)

    def __iter__(self) -> Iterator[ModelVersion]:
        return iter(self._versions.values())

    def live(self) -> list[ModelVersion]:
        """The version that answers for each name."""
        return [self._versions[f"{name}@{version}"] for name, version in self._live.items()]

    def references_of(self, version: ModelVersion) -> list[ModelVersion]:
        """The versions that this one is read together with: an implicit PRM's frozen reference."""
        return [self._versions[pinned.key] for pinned in references_of(version)]

    def calibrations(self, version: ModelVersion) -> CalibrationFolder:
        """What was fitted to this version's scores."""
        return self._calibrations[version.key]

    def get(self, key: str) -> ModelVersion | None:
        """The version called `name` (the live one) or `name@version`, or None."""
        if "@" not in key and key in self._live:
            key = f"{key}@{self._live[key]}"
        return self._versions.get(key)


def _check_place(version: ModelVersion, name: str, version_id: str) -> None:
    if (version.manifest.name, version.manifest.version) != (name, version_id):
        raise ModelFolderError(
            version.folder / MANIFEST, f"says {version.key}, but lies under {name}/{version_id}"
        )


def _resolve_reference(
    root: Path, version: ModelVersion, pinned: ModelRef, known: Mapping[str, ModelVersion]
) -> ModelVersion:
    reference = known.get(pinned.key) or load_version(root / pinned.name / pinned.version)
    _check_place(reference, pinned.name, pinned.version)
    if reference.weights_sha256 != pinned.weights_sha256:
        raise ModelFolderError(
            reference.folder,
            f"is not the reference that {version.key} was trained against: the SHA-256 of its "
            f"weights is {reference.weights_sha256[:12]}…, wanted {pinned.weights_sha256[:12]}…",
        )
    return reference
