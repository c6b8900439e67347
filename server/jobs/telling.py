"""What a run writes of its steps, told again as the job's events."""

import json
import time
from pathlib import Path
from typing import Any

from server.jobs.store import JobStore

# Of the steps of a run, no more than one a second is told; of its evaluations, all.
_EVERY_S = 1.0
_SHOWN = ("policy_loss", "loss", "prm_loss", "reward", "accuracy", "prm_pair_accuracy", "auroc")


class RunTeller:
    """Reads a run's `events.jsonl` as it grows. A resumed run cuts it; no step is told twice."""

    def __init__(self, store: JobStore, job_id: str, path: Path, steps: int) -> None:
        self._store = store
        self._job_id = job_id
        self._path = path
        self._steps = steps
        self._place = 0
        self._seen = {"step": 0, "evaluation": 0}
        self._told_at = 0.0

    def tell_new(self) -> None:
        """Tell what came since the last call."""
        for row in self._rows():
            kind, step = str(row.get("kind")), int(row.get("step", 0))
            if step <= self._seen.get(kind, 0):
                continue
            self._seen[kind] = step
            now = time.monotonic()
            if kind == "evaluation" or step == self._steps or now - self._told_at >= _EVERY_S:
                self._told_at = now
                self._tell(kind, step, row)

    def skip_told(self) -> None:
        """Leave out what a run before has told already."""
        for row in self._rows():
            kind = str(row.get("kind"))
            self._seen[kind] = max(self._seen.get(kind, 0), int(row.get("step", 0)))

    def _tell(self, kind: str, step: int, row: dict[str, Any]) -> None:
        shown = ", ".join(
            f"{name} {row[name]:.4g}" for name in _SHOWN if isinstance(row.get(name), int | float)
        )
        what = "Evaluation after step" if kind == "evaluation" else "Step"
        message = f"{what} {step}/{self._steps}" + (f": {shown}" if shown else "")
        data = {name: value for name, value in row.items() if name not in ("kind",)}
        self._store.tell(self._job_id, message, type="metrics", data=data)

    def _rows(self) -> list[dict[str, Any]]:
        """The whole lines that were not read yet."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                if size < self._place:
                    self._place = 0
                file.seek(self._place)
                raw = file.read()
        except FileNotFoundError:
            return []
        whole = raw[: raw.rfind(b"\n") + 1]
        self._place += len(whole)
        rows = []
        for line in whole.splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows


def trained_tokens(path: Path) -> int | None:
    """Response tokens that a run trained on, of all its steps; None where it tells none."""
    try:
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    except (FileNotFoundError, ValueError):
        return None
    tokens = [row["tokens"] for row in rows if row.get("kind") == "step" and row.get("tokens")]
    return int(sum(tokens)) if tokens else None
