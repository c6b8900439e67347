"""From a downloaded checkpoint to a published version.

    files → family and recipe → golden scores (in a process of its own) → publish → open again

An adapter takes the same way, with its base lending what its folder lacks (`adapter_import.py`).

Nothing of it is written before everything is known to fit, and what is written is removed when
something fails.
"""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prm.adapter_import import AdapterFolder
from prm.aggregation import PlainAggregation
from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.checkpoint_files import CheckpointFiles, choose_files
from prm.detection import Asked, Detected, detect, refuse_own_head
from prm.engine.golden_process import Watch, compute_golden
from prm.errors import InvalidInput, ModelFolderError, Unavailable
from prm.families import FAMILIES
from prm.files import hash_file
from prm.golden_set import BUILT_IN, GoldenItem, read_golden
from prm.manifest import (
    NAME_PATTERN,
    FileRecord,
    GoldenScore,
    ModelVersion,
    PolicyManifest,
    PrmManifest,
)
from prm.registry import (
    Registry,
    check_fit,
    check_reference,
    live_version,
    load_version,
    publish,
)
from prm.steps import join_steps
from prm.types import Trajectory


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What to import, as what, and where to. None leaves a choice to the family."""

    folder: Path
    name: str
    version: str
    root: Path
    asked: Asked = field(default_factory=Asked)
    reference: str | None = None
    step_separator: str | None = None
    aggregation: PlainAggregation | None = None
    threshold: float | None = None
    is_policy: bool = False
    golden: Path | None = None
    tolerance: float = 0.01
    live: bool = True
    dry_run: bool = False
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was found and, unless it was a dry run, published. `detected` is None of a policy."""

    manifest: PolicyManifest | PrmManifest
    detected: Detected | None
    files: CheckpointFiles
    num_bytes: int


def import_checkpoint(request: ImportRequest, watch: Watch) -> Imported:
    """Import one. Raises InvalidInput, ModelFolderError, Unavailable, OSError."""
    _check_place(request)
    adapter = AdapterFolder.open(request.folder)
    request = _as_found(request, adapter)
    references = _reference(request)
    files = adapter.files(references[0]) if adapter else choose_files(request.folder)
    with _staged(files, request.folder) as staged:
        items = _golden_items(request)
        checkpoint = replace(Checkpoint.open(staged), folder=request.folder.absolute())
        detected = None if request.is_policy else _detect(checkpoint, request, references)
        if detected is None:
            refuse_own_head(checkpoint, None, "is more than a language model")
        elif adapter:
            detected = replace(detected, evidence=adapter.evidence(references[0]))
        draft = ModelVersion(staged, _draft(request, detected, staged, items))
        check_fit(draft)
        for reference in references:
            check_reference(draft, reference)
        if adapter:
            adapter.check_tensors(references[0])
        _check_readable(draft, items)
        raws = compute_golden(
            draft, references, device=request.device, threads=request.threads, watch=watch
        )
        golden = []
        for (where, item), score, raw in zip(items, draft.manifest.golden, raws, strict=True):
            item.check(raw, tolerance=request.tolerance, where=where)
            golden.append(score.model_copy(update={"raw": tuple(raw)}))
        manifest = draft.manifest.model_copy(update={"golden": tuple(golden)})
        num_bytes = files.num_bytes
        if not request.dry_run:
            _publish(request, staged, manifest, num_bytes, watch)
    return Imported(manifest=manifest, detected=detected, files=files, num_bytes=num_bytes)


def _check_place(request: ImportRequest) -> None:
    for option, value in (("--name", request.name), ("--version", request.version)):
        if not re.match(NAME_PATTERN, value):
            raise InvalidInput(
                f"{option} {value!r}: up to 64 letters, digits, '.', '_' and '-', not beginning "
                "with one of the signs"
            )
    if (request.root / request.name / request.version).exists():
        raise InvalidInput(
            f"{request.name}@{request.version} is already published in {request.root}, and "
            "versions never change; choose another --version"
        )


def _as_found(request: ImportRequest, adapter: AdapterFolder | None) -> ImportRequest:
    """The request, and that it is of an adapter: the folder alone says so."""
    said = request.asked.settings.get("adapter")
    if said is not None and said is not (adapter is not None):
        raise InvalidInput(
            f"--set adapter={json.dumps(said)}: told from the folder, which holds "
            + ("an adapter" if adapter else "a whole model")
        )
    if adapter is None:
        return request
    asked = adapter.asked(request.asked, reference=request.reference, is_policy=request.is_policy)
    return replace(request, asked=asked)


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


def _golden_items(request: ImportRequest) -> list[tuple[str, GoldenItem]]:
    if request.golden is not None:
        return read_golden(request.golden)
    return [(f"golden item {number}", item) for number, item in enumerate(BUILT_IN)]


def _reference(request: ImportRequest) -> list[ModelVersion]:
    """The version that `reference` names, verified; nothing where it is not said or "none"."""
    if request.reference in (None, "none"):
        return []
    assert request.reference is not None
    name, _, version = request.reference.partition("@")
    if not re.match(NAME_PATTERN, name) or (version and not re.match(NAME_PATTERN, version)):
        raise InvalidInput(
            f"--reference {request.reference!r} is not NAME@VERSION, nor none; a folder is "
            "published first: rung models import FOLDER --name NAME --policy"
        )
    version = version or live_version(request.root, name)
    return [load_version(request.root / name / version)]


def _detect(
    checkpoint: Checkpoint, request: ImportRequest, references: Sequence[ModelVersion]
) -> Detected:
    settings: dict[str, Any] = dict(request.asked.settings)
    if request.reference is not None:
        settings["reference"] = references[0].ref.model_dump() if references else None
    return detect(checkpoint, replace(request.asked, settings=settings))


def _draft(
    request: ImportRequest,
    detected: Detected | None,
    staged: Path,
    items: Sequence[tuple[str, GoldenItem]],
) -> PolicyManifest | PrmManifest:
    """The manifest without golden scores, and with no file but the tokenizer."""
    tokenizer = staged / "tokenizer.json"
    record = FileRecord(bytes=tokenizer.stat().st_size, sha256=hash_file(tokenizer))
    common: dict[str, Any] = {
        "name": request.name,
        "version": request.version,
        "created": int(time.time()),
        "files": {"tokenizer.json": record},
        "golden": tuple(
            GoldenScore(messages=item.chat, steps=item.steps, raw=()) for _, item in items
        ),
        "training": {"imported_from": origin_of(request.folder)},
    }
    given = {
        "step_separator": request.step_separator,
        "aggregation": request.aggregation,
        "threshold": request.threshold,
    }
    given = {name: value for name, value in given.items() if value is not None}
    try:
        if detected is None:
            return PolicyManifest(**common | given)
        found: Mapping[str, Any] = {
            "family": detected.family,
            "recipe": detected.recipe.model_dump(mode="json"),
            "step_separator": detected.step_separator,
            "aggregation": detected.aggregation,
            "threshold": detected.threshold,
        }
        return PrmManifest(**{**common, **found, **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidInput(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def origin_of(folder: Path) -> str:
    """What a checkpoint's folder is called, without where it lies; of a hub's cache, its name.

    >>> origin_of(Path("/data/Qwen2.5-Math-PRM-7B"))
    'Qwen2.5-Math-PRM-7B'
    >>> origin_of(Path("/cache/models--Qwen--Qwen2.5-Math-PRM-7B/snapshots/0610740"))
    'Qwen/Qwen2.5-Math-PRM-7B@0610740'
    """
    folder = folder.absolute()
    cached = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        return f"{cached.removeprefix('models--').replace('--', '/')}@{folder.name}"
    return folder.name


def _check_readable(draft: ModelVersion, items: Sequence[tuple[str, GoldenItem]]) -> None:
    """Raises what the family raises, before any weights are loaded.

    ModelFolderError when it cannot be bound to this tokenizer, InvalidInput naming the item that
    it cannot read.
    """
    tokenizer = ChatTokenizer(draft.folder)
    read = _reader_of(draft, tokenizer)
    for where, item in items:
        try:
            response, steps = join_steps(item.steps, draft.manifest.step_separator)
            read(Trajectory(messages=item.chat, response=response, steps=steps))
        except InvalidInput as error:
            raise InvalidInput(f"{where}: {error}; give other items with --golden") from error


def _reader_of(draft: ModelVersion, tokenizer: ChatTokenizer) -> Callable[[Trajectory], object]:
    if isinstance(draft.manifest, PolicyManifest):
        return lambda trajectory: tokenizer.encode_prompt(trajectory.messages)
    return FAMILIES[draft.manifest.family].load(draft, tokenizer).encode


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
