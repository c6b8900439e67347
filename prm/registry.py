"""Model versions on disk: what a folder must hold, and how one is published and verified.

    models/<name>/<version>/  manifest.json  *.safetensors  config.json  tokenizer files  STABLE
    models/<name>/live.json   {"live": "<version>"}
    models/<name>/calibration/<version>/<policy>.json   see prm/calibration.py

A folder without STABLE (written last) does not exist for us. Names and versions come from listing
the directory, never from a caller: a name in a request is looked up, not joined to a path.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from prm import calibration
from prm.calibration import Calibration
from prm.errors import ModelFolderError
from prm.families import FAMILIES
from prm.families.base import Recipe
from prm.files import Report, copy_durably, hash_file, read_json, write_durably
from prm.manifest import (
    NAME_PATTERN,
    FileRecord,
    ManifestFile,
    ModelRef,
    ModelVersion,
    PolicyManifest,
    PrmManifest,
)

MANIFEST = "manifest.json"
STABLE = "STABLE"
LIVE = "live.json"
REQUIRED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
# Weights lie in one file, or in shards that an index lists.
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# LoRA weights, which are run on those of the recipe's reference.
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# What an adapter's config.json may say otherwise than its base's.
FREE_SETTINGS = frozenset(
    {
        "_name_or_path",
        "dtype",
        "max_position_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
# Formats that run code when they are loaded.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".joblib")
CODE_SUFFIXES = (".py", ".so")


class Registry:
    """The versions under one root folder, verified. Raises ModelFolderError for a bad one."""

    def __init__(self, versions: Sequence[ModelVersion], live: Mapping[str, str]) -> None:
        self._versions = {version.key: version for version in versions}
        self._live = dict(live)
        self._calibrations = {version.key: calibration.load(version) for version in versions}

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
            version_id = _live_version(folder / LIVE)
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

    def calibrations(self, version: ModelVersion) -> Mapping[str, Calibration]:
        """What was fitted to this version's scores, by policy."""
        return self._calibrations[version.key]

    def get(self, key: str) -> ModelVersion | None:
        """The version called `name` (the live one) or `name@version`, or None."""
        if "@" not in key and key in self._live:
            key = f"{key}@{self._live[key]}"
        return self._versions.get(key)


def load_version(folder: Path, report: Report | None = None) -> ModelVersion:
    """Read one version's manifest and check every file against it.

    Raises ModelFolderError naming the file: no STABLE marker, a missing file, a size or hash that
    differs, a pickle or a program where only data may lie, a manifest that does not fit its config.
    """
    version = read_version(folder)
    listed = {*version.manifest.files, MANIFEST, STABLE}
    for path in sorted(folder.iterdir()):
        # A loader could pick it up beside, or instead of, what was verified.
        if path.name not in listed:
            raise ModelFolderError(path, f"not listed under files in {MANIFEST}; remove it")
    for name in sorted({*REQUIRED_FILES, *_weight_files(folder), *version.manifest.files}):
        _check_file(folder, name, version.manifest.files, report)
    return version


def read_version(folder: Path) -> ModelVersion:
    """Like `load_version`, but takes the hashes on trust: for a folder that was just verified."""
    if not (folder / STABLE).is_file():
        raise ModelFolderError(folder / STABLE, "missing: this version was never fully published")
    manifest = _read_manifest(folder / MANIFEST)
    _refuse_code(folder)
    version = ModelVersion(folder, manifest)
    check_fit(version)
    _check_adapter(version)
    return version


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
    return _live_version(root / name / LIVE)


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
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelFolderError(folder / INDEX, "field weight_map: not a table of shards")
    return {INDEX, *map(str, shards.values())}


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


def check_fit(version: ModelVersion) -> None:
    """Raises ModelFolderError when the configuration is not of the kind that the manifest says."""
    path = version.folder / "config.json"
    architectures = version.config.get("architectures")
    is_listed = isinstance(architectures, list) and architectures
    architecture = str(architectures[0]) if is_listed and architectures else "none"
    if not isinstance(version.config.get("max_position_embeddings"), int):
        raise ModelFolderError(path, "max_position_embeddings is missing")
    if isinstance(version.manifest, PolicyManifest):
        if not architecture.endswith("ForCausalLM"):
            raise ModelFolderError(
                path, f"architecture {architecture} is not a causal language model"
            )
        return
    family = FAMILIES.get(version.manifest.family)
    if family is None:
        known = ", ".join(FAMILIES)
        raise ModelFolderError(
            version.folder / MANIFEST, f"family {version.manifest.family!r} is not one of {known}"
        )
    if not family.reads_architecture(architecture):
        raise ModelFolderError(
            path,
            f"architecture {architecture} does not fit family {family.name!r} of {MANIFEST}, "
            f"which reads …{' or …'.join(family.architectures)}",
        )
    family.recipe_of(version)


def _check_adapter(version: ModelVersion) -> None:
    """The recipe and the files must agree on whether the weights are an adapter."""
    files = version.manifest.files
    path = version.folder / ADAPTER_CONFIG
    if adapter_base(version) is None:
        if ADAPTER_CONFIG in files or ADAPTER in files:
            raise ModelFolderError(
                path,
                "an adapter is served by family 'implicit' with adapter: true in its recipe and "
                "its base as reference; merge it into its base for any other use",
            )
        return
    if ADAPTER_CONFIG not in files:
        raise ModelFolderError(path, "missing; the recipe says that the weights are an adapter")
    for name in sorted(files):
        if name.endswith(".safetensors") and name != ADAPTER:
            raise ModelFolderError(
                version.folder / name, "weights beside an adapter's; they would not be read"
            )


def _check_place(version: ModelVersion, name: str, version_id: str) -> None:
    if (version.manifest.name, version.manifest.version) != (name, version_id):
        raise ModelFolderError(
            version.folder / MANIFEST, f"says {version.key}, but lies under {name}/{version_id}"
        )


def check_reference(version: ModelVersion, reference: ModelVersion) -> None:
    """Both models of a log-ratio must read the same ids, and as many of them."""
    ours, theirs = (v.manifest.files["tokenizer.json"].sha256 for v in (version, reference))
    if ours != theirs:
        raise ModelFolderError(
            version.folder / "tokenizer.json",
            f"differs from that of its reference {reference.key}: their log-probs do not compare",
        )
    if adapter_base(version) is not None:
        _check_base(version, reference)
    if reference.context_limit < version.context_limit:
        raise ModelFolderError(
            version.folder / "config.json",
            f"reads {version.context_limit} tokens, its reference {reference.key} only "
            f"{reference.context_limit}; publish it with the smaller limit",
        )


def _check_base(version: ModelVersion, base: ModelVersion) -> None:
    """An adapter runs in its base's configuration, which its own folder must not contradict."""
    if not isinstance(base.manifest, PolicyManifest):
        raise ModelFolderError(
            version.folder / MANIFEST,
            f"recipe.reference {base.key} is no policy; an adapter is run on one",
        )
    for key in sorted((version.config.keys() | base.config.keys()) - FREE_SETTINGS):
        ours, theirs = version.config.get(key), base.config.get(key)
        if ours != theirs:
            raise ModelFolderError(
                version.folder / "config.json",
                f"{key} is {ours!r}, and {theirs!r} in the adapter's base {base.key}; an adapter "
                "runs in its base's configuration",
            )


def references_of(version: ModelVersion) -> tuple[ModelRef, ...]:
    """The versions that this one is read together with, as its recipe pins them."""
    if isinstance(version.manifest, PolicyManifest):
        return ()
    recipe: Recipe = FAMILIES[version.manifest.family].recipe_of(version)
    return recipe.references


def adapter_base(version: ModelVersion) -> ModelRef | None:
    """The version whose weights this one's adapter is run on; None for weights of its own."""
    if isinstance(version.manifest, PolicyManifest):
        return None
    recipe: Recipe = FAMILIES[version.manifest.family].recipe_of(version)
    return recipe.adapter_base


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


def _live_version(path: Path) -> str:
    live = read_json(path).get("live")
    if not isinstance(live, str) or not re.match(NAME_PATTERN, live):
        raise ModelFolderError(path, "field live: not a version name")
    return live
