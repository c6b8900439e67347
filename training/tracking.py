"""Sinks for dashboards: TensorBoard's event files and trackio's projects.

A dashboard is a convenience and a run is hours of work: whatever goes wrong in one is told once,
and the run goes on without it.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from training.events import Numbers, Sink
from training.spec import TrainingJob
from training.trackers import Trackers

Warn = Callable[[str], None]


class Tracker(Sink, Protocol):
    """A sink that has something to finish."""

    def close(self) -> None:
        """Write out what is left."""
        ...


class TensorBoard:
    """Scalars named `kind/number`, such as `step/reward`, in event files of TensorBoard's.

    Written out with every event, so that a run that was killed has told all of it. A resumed run
    takes back what was written behind its checkpoint.
    """

    def __init__(self, folder: Path, *, after_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if after_step is None else after_step + 1
        self._writer: Any = SummaryWriter(str(folder), purge_step=purge)

    def write(self, kind: str, step: int, numbers: Numbers) -> None:
        """See `Sink.write`."""
        for name, value in _finite(numbers).items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """See `Tracker.close`."""
        self._writer.close()


class Trackio:
    """A run of a trackio project, named like its job, with the job as its settings."""

    def __init__(self, project: str, job: TrainingJob, *, is_resumed: bool = False) -> None:
        import trackio

        self._trackio: Any = trackio
        with _on_stderr():
            trackio.init(
                project=project,
                name=job.name,
                config=job.model_dump(mode="json"),
                resume="allow" if is_resumed else "never",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def write(self, kind: str, step: int, numbers: Numbers) -> None:
        """See `Sink.write`."""
        told = {f"{kind}/{name}": value for name, value in _finite(numbers).items()}
        self._trackio.log(told, step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        with _on_stderr():
            self._trackio.finish()


class Harmless:
    """A tracker that cannot stop a run: its first failure is told, and it is not asked again."""

    def __init__(self, name: str, start: Callable[[], Tracker], warn: Warn) -> None:
        self._name = name
        self._warn = warn
        self._tracker: Tracker | None = None
        with self._survived():
            self._tracker = start()

    def write(self, kind: str, step: int, numbers: Numbers) -> None:
        """See `Sink.write`."""
        if self._tracker is not None:
            with self._survived():
                self._tracker.write(kind, step, numbers)

    def close(self) -> None:
        """See `Tracker.close`."""
        if self._tracker is not None:
            with self._survived():
                self._tracker.close()

    @contextmanager
    def _survived(self) -> Iterator[None]:
        try:
            yield
        # Of somebody else's files, database or server: anything, and none of it the run's business.
        except Exception as error:
            self._tracker = None
            self._warn(
                f"{self._name} failed and hears no more of this run, which goes on: "
                f"{type(error).__name__}: {error}"
            )


def start_trackers(
    wanted: Trackers, job: TrainingJob, stack: ExitStack, warn: Warn, *, after_step: int | None
) -> list[Sink]:
    """The trackers that were asked for; `stack` closes them. `after_step`: of a resumed run."""
    starts: dict[str, Callable[[], Tracker]] = {}
    if (folder := wanted.tensorboard) is not None:
        starts["TensorBoard"] = lambda: TensorBoard(folder, after_step=after_step)
    if (project := wanted.trackio) is not None:
        starts["trackio"] = lambda: Trackio(project, job, is_resumed=after_step is not None)
    trackers = [Harmless(name, start, warn) for name, start in starts.items()]
    for tracker in trackers:
        stack.callback(tracker.close)
    return list(trackers)


def _on_stderr() -> redirect_stdout[Any]:
    """What a library prints is no result of the command's."""
    return redirect_stdout(sys.stderr)


def _finite(numbers: Numbers) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
