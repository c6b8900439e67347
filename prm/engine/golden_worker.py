"""Golden scores of a version that is not published yet, in a process of its own.

    stdin    one JSON object: see `GoldenRequest`
    stdout   {"raw": [...]} per trajectory, as they come, or one {"path", "reason"} and exit code 2

In float32 whatever the checkpoint's dtype: every loader has to reproduce these numbers, and those
that run in float32 are held to three digits. Started by `prm/importing/golden_process.py`.
"""

import json
import sys
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from prm.chat import ChatTokenizer
from prm.engine.golden import golden_raw
from prm.engine.reads import NotFinite
from prm.engine.residents import load_all
from prm.errors import InvalidInput, ModelFolderError
from prm.manifest import ManifestFile, ModelVersion
from prm.registry import read_version


class GoldenRequest(BaseModel):
    """A folder, the manifest that it is to have, the versions it is read with, and where to run."""

    model_config = ConfigDict(extra="forbid")

    folder: Path
    draft: ManifestFile
    references: list[Path]
    device: str
    threads: int


def main() -> None:
    """Load, then say a line per trajectory."""
    request = GoldenRequest.model_validate_json(sys.stdin.read())
    torch.set_num_threads(request.threads)
    try:
        _compute(request)
    except ModelFolderError as error:
        _say(path=str(error.path), reason=error.reason)
        sys.exit(2)


def _compute(request: GoldenRequest) -> None:
    version = ModelVersion(request.folder, request.draft.manifest)
    versions = [version, *map(read_version, request.references)]
    models = load_all(versions, request.device, torch.float32)
    tokenizer = ChatTokenizer(version.folder)
    for number, golden in enumerate(version.manifest.golden):
        try:
            _say(raw=golden_raw(version, tokenizer, models, golden))
        except (InvalidInput, NotFinite) as error:
            raise ModelFolderError(request.folder, f"golden score {number}: {error}") from error


def _say(**line: object) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
