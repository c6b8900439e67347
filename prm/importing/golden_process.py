"""Golden scores of a draft, computed by `prm/engine/golden_worker.py` in a process that may die."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from os import SEEK_END
from pathlib import Path
from typing import IO, Any

from prm.engine.process import engine_environment
from prm.errors import ModelFolderError, Unavailable
from prm.manifest import ModelVersion

# What is being done, how much of it is done, and how much there is.
Watch = Callable[[str, int, int], None]


def compute_golden(
    draft: ModelVersion,
    references: Sequence[ModelVersion],
    *,
    device: str,
    threads: int,
    watch: Watch,
) -> list[list[float]]:
    """Raw numbers of every golden trajectory of the draft's manifest.

    Raises ModelFolderError when the weights are not what they should be, Unavailable when the
    process ended without an answer, as one that needs more memory than there is.
    """
    wanted = len(draft.manifest.golden)
    watch("computing golden scores", 0, wanted)
    question = {
        "folder": str(draft.folder),
        "draft": {"manifest": draft.manifest.model_dump(mode="json")},
        "references": [str(reference.folder.absolute()) for reference in references],
        "device": device,
        "threads": threads,
    }
    raws: list[list[float]] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        for answer in _ask(json.dumps(question), log):
            raws.append(answer["raw"])
            watch("computing golden scores", len(raws), wanted)
        if len(raws) < wanted:
            log.seek(0)
            *_, last, code = ["no word from it", *log.read().strip().splitlines()]
            raise Unavailable(f"the computation of golden scores ended with {code}: {last}")
    return raws


def _ask(question: str, log: IO[str]) -> Iterator[dict[str, Any]]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "prm.engine.golden_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=engine_environment(),
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # it ended at once, and the log says why
                process.stdin.write(question)
                process.stdin.close()
            for line in process.stdout:
                answer = json.loads(line)
                if "reason" in answer:
                    raise ModelFolderError(Path(answer["path"]), answer["reason"])
                yield answer
            log.seek(0, SEEK_END)
            print(f"\nexit code {process.wait()}", file=log, flush=True)
        finally:
            process.kill()
