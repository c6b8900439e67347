"""What a run tells: one JSON object a line in `events.jsonl`, and whoever else listens.

Numbers go to a file always; bars and dashboards may listen beside it.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from prm.files import replace_durably

# A step's numbers by name, such as "reward", "accuracy", "policy_loss", "seconds_rollouts".
Numbers = Mapping[str, float]


class Sink(Protocol):
    """Hears every event as it happens."""

    def write(self, kind: str, step: int, numbers: Numbers) -> None:
        """`kind` is "step", "evaluation" or "end"."""
        ...


class JsonLines:
    """`events.jsonl`. A resumed run cuts off what was written behind its checkpoint."""

    def __init__(self, path: Path, *, after_step: int | None = None) -> None:
        self._path = path
        if path.exists():
            kept = [] if after_step is None else _until(path, after_step)
            replace_durably(path, "".join(kept))

    def write(self, kind: str, step: int, numbers: Numbers) -> None:
        """See `Sink.write`. Numbers that are none are null: JSON has no NaN."""
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")


class Events:
    """Fans out, and keeps the time of each phase of a step.

    `beat` is called at the begin and the end of whatever takes time.
    """

    def __init__(self, sinks: Sequence[Sink], beat: Callable[[], None] = lambda: None) -> None:
        self.sinks = list(sinks)
        self._beat = beat
        self._seconds: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time spent in here is told as `seconds_<name>` of the step."""
        self._beat()
        started = time.perf_counter()
        try:
            yield
        finally:
            self._beat()
            spent = time.perf_counter() - started
            self._seconds[name] = self._seconds.get(name, 0.0) + spent

    def count(self, name: str) -> None:
        """One more of what is rare: told as `name` of the next event, and of no other."""
        self._counts[name] = self._counts.get(name, 0.0) + 1

    def write(self, kind: str, step: int, numbers: Numbers) -> None:
        """Tell all sinks, with the seconds of the phases since the last event, and the counts."""
        seconds = {f"seconds_{name}": value for name, value in self._seconds.items()}
        numbers, self._seconds, self._counts = {**numbers, **self._counts}, {}, {}
        self._beat()
        for sink in self.sinks:
            sink.write(kind, step, {**numbers, **seconds})


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a run, in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _until(path: Path, step: int) -> list[str]:
    """The lines up to this step; one that was cut off by a crash is left out."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            break
    return kept
