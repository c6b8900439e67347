"""What is to be imported, and whether it can be had where it is wanted."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prm.aggregation import PlainAggregation
from prm.errors import InvalidInput
from prm.importing.adapter import AdapterFolder
from prm.importing.detection import Asked
from prm.importing.golden_items import BUILT_IN, GoldenItem, read_golden
from prm.manifest import NAME_PATTERN, ModelVersion
from prm.registry import load_version, read_pointer


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What to import, as what, and where to. None leaves a choice to the family.

    `training` says in the manifest how it was made, beside the folder that it came from.
    """

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
    training: Mapping[str, Any] = field(default_factory=dict)
    golden: Path | None = None
    tolerance: float = 0.01
    live: bool = True
    dry_run: bool = False
    device: str = "cpu"
    threads: int = 1


def check_place(request: ImportRequest) -> None:
    """Raises InvalidInput for names that are none, and for a version that is there already."""
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


def as_found(request: ImportRequest, adapter: AdapterFolder | None) -> ImportRequest:
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


def asked_references(request: ImportRequest) -> list[ModelVersion]:
    """The version that `reference` names, verified; nothing where it is not said or "none".

    Raises InvalidInput for what is no name, ModelFolderError for a version that is not there.
    """
    if request.reference in (None, "none"):
        return []
    assert request.reference is not None
    name, _, version = request.reference.partition("@")
    if not re.match(NAME_PATTERN, name) or (version and not re.match(NAME_PATTERN, version)):
        raise InvalidInput(
            f"--reference {request.reference!r} is not NAME@VERSION, nor none; a folder is "
            "published first: rung models import FOLDER --name NAME --policy"
        )
    version = version or read_pointer(request.root, name).live
    return [load_version(request.root / name / version)]


def golden_items(request: ImportRequest) -> list[tuple[str, GoldenItem]]:
    """What golden scores are computed of, each item with the words that name it."""
    if request.golden is not None:
        return read_golden(request.golden)
    return [(f"golden item {number}", item) for number, item in enumerate(BUILT_IN)]
