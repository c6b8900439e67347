"""Jobs on disk: the folder is the truth, whoever else is told.

`job.json` is written once, durably, before the caller hears of the job; `state.json` is replaced
whole, under a lock, by any process; `events.jsonl` grows by whole lines. A `running.lock` is held
by whoever runs the job. Everything here is file work and blocks: call it in a thread.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from prm.errors import ModelFolderError, NotFound
from prm.files import read_json, replace_durably, sync_folder
from server.jobs.records import JOB_ID, JobRecord, JobState, new_id
from server.schemas.fine_tuning import EventType, JobEvent, Level

JOB, STATE, EVENTS, LOCK = "job.json", "state.json", "events.jsonl", "running.lock"
RUN = "run"
# A change takes milliseconds; who waits longer waits for a process that hangs.
_LOCK_TIMEOUT_S = 10

logger = logging.getLogger(__name__)


class JobStore:
    """The jobs under one folder, for any number of threads and processes at once."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs.absolute()
        # Records never change.
        self._records: dict[str, JobRecord] = {}

    def create(self, record: JobRecord) -> None:
        """Accept a job: it survives whatever happens from here on. Raises OSError."""
        folder = self.runs / record.id
        folder.mkdir(parents=True)
        replace_durably(folder / JOB, record.model_dump_json(indent=1) + "\n")
        sync_folder(self.runs)
        self._records[record.id] = record

    def folder(self, job_id: str) -> Path:
        """Where a job's files lie. Raises NotFound; an id that is none touches no file."""
        folder = self.runs / job_id
        if not JOB_ID.fullmatch(job_id) or not (folder / JOB).is_file():
            raise NotFound(f"no job {job_id[:100]!r} here", param="fine_tuning_job_id")
        return folder

    def record(self, job_id: str) -> JobRecord:
        """What was asked. Raises NotFound, and ModelFolderError where the file is damaged."""
        path = self.folder(job_id) / JOB
        if job_id not in self._records:
            try:
                self._records[job_id] = JobRecord.model_validate(read_json(path))
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                where = ".".join(map(str, first["loc"]))
                raise ModelFolderError(path, f"field {where}: {first['msg']}") from error
        return self._records[job_id]

    def state(self, job_id: str) -> JobState:
        """How far it is. Raises NotFound."""
        return self._read_state(self.folder(job_id))

    def change(self, job_id: str, change: Callable[[JobState], JobState]) -> JobState:
        """Replace the state by what `change` makes of it; returns what is there then.

        Nobody else changes it meanwhile. What `change` raises goes up, and nothing is changed.
        """
        folder = self.folder(job_id)
        with FileLock(folder / f".{STATE}.lock", timeout=_LOCK_TIMEOUT_S):
            before = self._read_state(folder)
            after = change(before)
            if after != before or not (folder / STATE).exists():
                replace_durably(folder / STATE, after.model_dump_json(indent=1) + "\n")
        return after

    def ids(self) -> list[str]:
        """All jobs whose record can be read, the newest first."""
        try:
            names = [name for name in os.listdir(self.runs) if JOB_ID.fullmatch(name)]
        except FileNotFoundError:
            return []
        dated = [(made, name) for name in names if (made := self._made(name)) is not None]
        return [name for _, name in sorted(dated, reverse=True)]

    def waiting(self) -> list[str]:
        """Jobs that somebody should look at and nobody does, the oldest first.

        Those that are to run, and those whose runner was killed before it could let go of them.
        """
        return [
            job_id
            for job_id in reversed(self.ids())
            if _is_open(self.state(job_id)) and not self.is_held(job_id)
        ]

    def is_held(self, job_id: str) -> bool:
        """Whether somebody has the job's `running.lock`."""
        try:
            file = os.open(self.folder(job_id) / LOCK, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            # Shared, so that two who look do not take each other for a runner.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False

    def tell(
        self,
        job_id: str,
        message: str,
        level: Level = "info",
        type: EventType = "message",
        data: dict[str, Any] | None = None,
    ) -> JobEvent:
        """Append an event, in one write. It is on disk when this returns."""
        event = JobEvent(
            id=new_id("ftevent"),
            created_at=int(time.time()),
            level=level,
            message=message,
            type=type,
            data=data or {},
        )
        file = os.open(self.folder(job_id) / EVENTS, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            line = event.model_dump_json(exclude={"object"}) + "\n"
            # A line that a crash cut off ends where the next begins.
            os.write(file, (("\n" if _is_cut(file) else "") + line).encode())
            os.fsync(file)
        finally:
            os.close(file)
        return event

    def events(
        self, job_id: str, after: str | None = None, limit: int | None = None
    ) -> tuple[list[JobEvent], bool]:
        """Events, the newest first, from behind `after` on; and whether there are more.

        Raises NotFound for a job or an event that is not there.
        """
        found = list(reversed(self.all_events(job_id)))
        if after is not None:
            places = [place for place, event in enumerate(found) if event.id == after]
            if not places:
                raise NotFound(f"no event {after[:100]!r} of {job_id}", param="after")
            found = found[places[0] + 1 :]
        wanted = found if limit is None else found[:limit]
        return wanted, len(wanted) < len(found)

    def all_events(self, job_id: str) -> list[JobEvent]:
        """Every whole line of the job's events, in order."""
        return self.events_from(job_id, 0)[0]

    def events_from(self, job_id: str, place: int) -> tuple[list[JobEvent], int]:
        """The events from a byte of the file on, and the byte to go on from."""
        try:
            with (self.folder(job_id) / EVENTS).open("rb") as file:
                file.seek(place)
                raw = file.read()
        except FileNotFoundError:
            return [], place
        raw = raw[: raw.rfind(b"\n") + 1]
        found = []
        for line in raw.split(b"\n"):
            try:
                found.append(JobEvent.model_validate(json.loads(line)))
            except ValueError:
                continue
        return found, place + len(raw)

    def _read_state(self, folder: Path) -> JobState:
        """The state; that of a new job where there is none yet, or where it is damaged."""
        path = folder / STATE
        try:
            return JobState.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return JobState()
        except ValueError:
            message = f"{STATE} was damaged: the job goes on from its last checkpoint"
            logger.warning("%s: %s", folder.name, message)
            with suppress(FileNotFoundError):  # another reader was there first
                path.replace(folder / f"{STATE}.damaged")
            self.tell(folder.name, message, "warn")
            return JobState()

    def _made(self, job_id: str) -> tuple[int, int] | None:
        """Sorts jobs by age; None of one that has no whole record."""
        try:
            created = self.record(job_id).created_at
            return created, (self.runs / job_id / JOB).stat().st_mtime_ns
        except (NotFound, OSError):
            return None
        except ModelFolderError as error:
            logger.error("a job is left out: %s", error)
            return None


def _is_open(state: JobState) -> bool:
    is_paused = state.wanted == "pause" and state.status != "running"
    return not state.is_finished and not is_paused


def _is_cut(file: int) -> bool:
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"
