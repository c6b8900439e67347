"""The manifest of a version to be: all but its golden scores and its files."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prm.chat import ChatTokenizer
from prm.errors import InvalidInput
from prm.families import FAMILIES
from prm.files import hash_file
from prm.importing.detection import Detected
from prm.importing.golden_items import GoldenItem
from prm.importing.request import ImportRequest
from prm.manifest import FileRecord, GoldenScore, ModelVersion, PolicyManifest, PrmManifest
from prm.steps import join_steps
from prm.types import Trajectory
from prm.validation import first_problem


def draft_manifest(
    request: ImportRequest,
    detected: Detected | None,
    staged: Path,
    items: Sequence[tuple[str, GoldenItem]],
) -> PolicyManifest | PrmManifest:
    """The manifest without golden scores, and with no file but the tokenizer.

    Raises InvalidInput naming the field that the request sets to what cannot be.
    """
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
        "training": {"imported_from": origin_of(request.folder), **request.training},
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
        raise InvalidInput(first_problem(error)) from error


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


def check_readable(draft: ModelVersion, items: Sequence[tuple[str, GoldenItem]]) -> None:
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
