"""The way of an import, from a folder to a version that answers for its name."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prm.checkpoint import Checkpoint
from prm.errors import ModelFolderError, Unavailable
from prm.importing.adapter import AdapterFolder
from prm.importing.detection import Detected, detect, refuse_own_head
from prm.importing.draft import check_readable, draft_manifest
from prm.importing.files import CheckpointFiles, choose_files
from prm.importing.golden_items import GoldenItem
from prm.importing.golden_process import Watch, compute_golden
from prm.importing.request import (
    ImportRequest,
    as_found,
    asked_references,
    check_place,
    golden_items,
)
from prm.manifest import ModelVersion, PolicyManifest, PrmManifest
from prm.registry import Registry, check_fit, check_reference, publish


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was found and, unless it was a dry run, published. `detected` is None of a policy."""

    manifest: PolicyManifest | PrmManifest
    detected: Detected | None
    files: CheckpointFiles
    num_bytes: int


def import_checkpoint(request: ImportRequest, watch: Watch) -> Imported:
    """Import one. Raises InvalidInput, ModelFolderError, Unavailable, OSError."""
    check_place(request)
    adapter = AdapterFolder.open(request.folder)
    request = as_found(request, adapter)
    references = asked_references(request)
    files = adapter.files(references[0]) if adapter else choose_files(request.folder)
    with _staged(files, request.folder) as staged:
        items = golden_items(request)
        checkpoint = replace(Checkpoint.open(staged), folder=request.folder.absolute())
        detected = None if request.is_policy else _detect(checkpoint, request, references)
        if detected is None:
            refuse_own_head(checkpoint, None, "is more than a language model")
        elif adapter:
            detected = replace(detected, evidence=adapter.evidence(references[0]))
        draft = ModelVersion(staged, draft_manifest(request, detected, staged, items))
        check_fit(draft)
        for reference in references:
            check_reference(draft, reference)
        if adapter:
            adapter.check_tensors(references[0])
        check_readable(draft, items)
        raws = compute_golden(
            draft, references, device=request.device, threads=request.threads, watch=watch
        )
        manifest = _with_golden(draft.manifest, items, raws, request.tolerance)
        num_bytes = files.num_bytes
        if not request.dry_run:
            _publish(request, staged, manifest, num_bytes, watch)
    return Imported(manifest=manifest, detected=detected, files=files, num_bytes=num_bytes)


@contextmanager
def _staged(files: CheckpointFiles, folder: Path) -> Iterator[Path]:
    """A folder of links to just the files that are kept. Errors about it name the checkpoint's."""
    with tempfile.TemporaryDirectory(prefix="rung-import-") as made:
        staged = Path(made)
        for name, path in files.paths.items():
            (staged / name).symlink_to(path)
        try:
            yield staged
        except ModelFolderError as error:
            if not error.path.is_relative_to(staged):
                raise
            raise ModelFolderError(
                folder / error.path.relative_to(staged), error.reason.replace(made, str(folder))
            ) from error


def _detect(
    checkpoint: Checkpoint, request: ImportRequest, references: Sequence[ModelVersion]
) -> Detected:
    settings: dict[str, Any] = dict(request.asked.settings)
    if request.reference is not None:
        settings["reference"] = references[0].ref.model_dump() if references else None
    return detect(checkpoint, replace(request.asked, settings=settings))


def _with_golden(
    manifest: PolicyManifest | PrmManifest,
    items: Sequence[tuple[str, GoldenItem]],
    raws: Sequence[Sequence[float]],
    tolerance: float,
) -> PolicyManifest | PrmManifest:
    """The manifest with what was computed, once it is what the publisher expects."""
    golden = []
    for (where, item), score, raw in zip(items, manifest.golden, raws, strict=True):
        item.check(raw, tolerance=tolerance, where=where)
        golden.append(score.model_copy(update={"raw": tuple(raw)}))
    return manifest.model_copy(update={"golden": tuple(golden)})


def _publish(
    request: ImportRequest,
    staged: Path,
    manifest: PolicyManifest | PrmManifest,
    num_bytes: int,
    watch: Watch,
) -> None:
    place = request.root.absolute()
    while not place.exists():
        place = place.parent
    if (free := shutil.disk_usage(place).free) < num_bytes:
        raise Unavailable(
            f"{request.root} has {free / 1e9:.1f} GB left, and the version needs "
            f"{num_bytes / 1e9:.1f} GB; make room, or choose another --models"
        )
    done = 0

    def report(more: int) -> None:
        nonlocal done
        done += more
        watch("copying and verifying", done, 2 * num_bytes)

    publish(request.root, staged, manifest, live=request.live, report=report)
    if request.live:
        watch("opening the model folder", 0, 0)
        try:
            Registry.open(request.root)
        except ModelFolderError as error:
            raise Unavailable(
                f"{manifest.key} is published and live, but the folder is refused: {error}"
            ) from error
