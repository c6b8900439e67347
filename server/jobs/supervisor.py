"""One job, from where it is to its end, in child processes.

    take its lock → train (`training.run`) → publish and gate (`server.jobs.finish`) → succeeded

Every phase may be killed at any moment and is done again without harm: a run resumes from its last
checkpoint, a version that was published is found, a verdict that was given stays.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prm.engine.process import WITHHELD
from prm.errors import RungError
from prm.files import is_out_of_space, replace_durably
from server.jobs.lock import RunningLock, running_lock_beside
from server.jobs.processes import Ask, Ended, memory_of, run_child
from server.jobs.records import JobRecord, JobState
from server.jobs.store import EVENTS, LOCK, RUN, JobStore
from server.jobs.telling import RunTeller, trained_tokens
from server.schemas.fine_tuning import JobError, Status
from training.environment import training_environment
from training.exits import AWAY, FULL, STOPPED

logger = logging.getLogger(__name__)

LOG, TRAINING = "log.txt", "training.json"
# Kept while a job runs, so that a disk that it has filled has room to say so.
RESERVE = "reserve"
_RESERVED_BYTES = 64 << 10
# Starts that workers did not live to see the end of count less: few of them die of their job.
_STARTS_PER_ATTEMPT = 3
_MOST_WAIT_S = 60.0
_TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of a job. `memory_mb` None: none. `silence_s` without a heartbeat, and it is ended.

    `pause_s`: how long a step may take to end, before it is lost to the last checkpoint; where the
    worker itself stops, `stop_s`.
    `attempts` without a new checkpoint, and the job has failed.
    """

    memory_mb: int | None = None
    silence_s: float = 1800.0
    pause_s: float = 60.0
    stop_s: float = 10.0
    cancel_s: float = 2.0
    attempts: int = 5


class Supervisor:
    """Runs jobs of one store, one call of `run` for each."""

    def __init__(
        self,
        store: JobStore,
        limits: Limits,
        environment: Mapping[str, str],
    ) -> None:
        self._store = store
        self._limits = limits
        self._environment = environment
        self._stops = False

    def stop(self) -> None:
        """Let go of the job that runs, with a checkpoint; another worker goes on with it."""
        self._stops = True

    async def run(self, job_id: str) -> None:
        """Bring a job to its end, unless somebody else does, or nobody wants it now."""
        folder = self._store.folder(job_id)
        async with running_lock_beside(folder / LOCK) as lock:
            if lock is None:
                return
            try:
                await asyncio.to_thread(_reserve, folder / RESERVE)
                await self._run(job_id, lock)
            except (RungError, OSError) as error:
                # A full disk, or a folder that was damaged: told, and taken up again by request.
                logger.error("%s: %s", job_id, error)
                if is_out_of_space(error):
                    await asyncio.to_thread(self._fail_for_room, job_id)
                else:
                    await asyncio.to_thread(self._fail, job_id, "worker_error", str(error))
            finally:
                (folder / RESERVE).unlink(missing_ok=True)

    async def _run(self, job_id: str, lock: RunningLock) -> None:
        record = await asyncio.to_thread(self._store.record, job_id)
        while not self._stops:
            begun = partial(_begun, reached=self._progress(record))
            state = await asyncio.to_thread(self._store.change, job_id, begun)
            if state.is_finished:
                return
            if state.attempts > _STARTS_PER_ATTEMPT * self._limits.attempts:
                what = f"it was started {state.attempts - 1} times since the last checkpoint"
                await asyncio.to_thread(self._fail, job_id, "attempts", f"{what}, and killed")
                return
            if state.wanted == "cancel":
                await asyncio.to_thread(self._let_go, job_id, "cancelled", "Cancelled")
                return
            if state.wanted == "pause":
                await asyncio.to_thread(self._let_go, job_id, "queued", "Paused")
                return
            if state.phase == "train":
                ended = await self._train(record, lock)
            else:
                ended = await self._finish(record, lock)
            state = await asyncio.to_thread(self._settle, record, state, ended)
            if ended.code == AWAY and not state.is_finished:
                await self._wait(job_id, min(_MOST_WAIT_S, 2.0**state.attempts))
        await asyncio.to_thread(self._let_go, job_id, "queued", "Its worker stops")

    async def _train(self, record: JobRecord, lock: RunningLock) -> Ended:
        folder = self._store.folder(record.id)
        run = folder / RUN
        await asyncio.to_thread(
            replace_durably, folder / TRAINING, record.training.model_dump_json(indent=1) + "\n"
        )
        is_resumed = (run / "job.json").exists()
        command = [sys.executable, "-m", "training.run", str(folder / TRAINING), f"--out={run}"]
        command += ["--resume", "--json"] if is_resumed else ["--json"]
        command += _trackers(record, run)
        teller = RunTeller(self._store, record.id, run / EVENTS, record.training.steps)
        if is_resumed:
            teller.skip_told()
        # A trainer needs none of the server's secrets.
        own = {**training_environment(), **self._environment}
        environment = {name: value for name, value in own.items() if name not in WITHHELD}
        try:
            return await self._child(record, lock, command, environment, teller)
        finally:
            await asyncio.to_thread(teller.tell_new)

    async def _finish(self, record: JobRecord, lock: RunningLock) -> Ended:
        command = [sys.executable, "-m", "server.jobs.finish", record.id]
        own = {name: value for name, value in os.environ.items() if name not in WITHHELD}
        return await self._child(record, lock, command, own | dict(self._environment))

    async def _wait(self, job_id: str, seconds: float) -> None:
        """Before the next attempt, unless somebody asks for something."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._stops:
            if (await asyncio.to_thread(self._store.state, job_id)).wanted != "run":
                return
            await asyncio.sleep(0.25)

    async def _child(
        self,
        record: JobRecord,
        lock: RunningLock,
        command: list[str],
        environment: Mapping[str, str],
        teller: RunTeller | None = None,
    ) -> Ended:
        began = time.time()
        heartbeat = self._store.folder(record.id) / RUN / "heartbeat"

        def look(pid: int) -> Ask | None:
            if teller is None:
                return self._asked(record.id, pid, silent_s=0.0)
            teller.tell_new()
            beaten_at = max(began, _modified(heartbeat))
            return self._asked(record.id, pid, silent_s=time.time() - beaten_at)

        async def look_beside(pid: int) -> Ask | None:
            return await asyncio.to_thread(look, pid)

        try:
            return await run_child(
                command,
                environment=environment,
                log=self._store.folder(record.id) / LOG,
                lock=lock.descriptor,
                started=lock.tell_group,
                look=look_beside,
            )
        finally:
            lock.tell_group(None)

    def _asked(self, job_id: str, pid: int, silent_s: float) -> Ask | None:
        limits, wanted = self._limits, self._store.state(job_id).wanted
        if wanted == "cancel":
            return Ask(why="cancel", grace_s=limits.cancel_s)
        if wanted == "pause":
            return Ask(why="pause", grace_s=limits.pause_s)
        if self._stops:
            return Ask(why="stop", grace_s=limits.stop_s)
        if silent_s > limits.silence_s:
            return Ask(why="silence", grace_s=limits.cancel_s)
        if limits.memory_mb is not None and memory_of(pid) > limits.memory_mb << 20:
            return Ask(why="memory", grace_s=0.0)
        return None

    def _settle(self, record: JobRecord, state: JobState, ended: Ended) -> JobState:
        """What a child's end means for the job; where it was asked to end, nothing yet."""
        if ended.code == 0 and ended.why != "cancel":
            return self._next_phase(record, state)
        if ended.why in ("cancel", "pause", "stop"):
            return state
        said = _last_error(self._store.folder(record.id) / LOG)
        if ended.why == "memory":
            return self._fail(
                record.id,
                "memory",
                f"the job's processes used more than {self._limits.memory_mb} MiB; lower "
                "optimizer.micro_tokens or rollouts.max_batch, or set activation_checkpointing, or "
                "raise RUNG_JOB_MEMORY_MB, and resume it",
            )
        if ended.why is None and ended.code == FULL:
            return self._fail_for_room(record.id)
        if ended.why is None and ended.code == 1 and said is not None:
            return self._fail(record.id, "refused", said)
        attempts = 0 if self._progress(record) > state.reached else state.attempts
        what = (
            f"gave no sign of life for {self._limits.silence_s:g} s"
            if ended.why == "silence"
            else f"ended by signal {-ended.code}"
            if ended.code < 0
            else f"stopped with code {ended.code}"
            if ended.code == STOPPED
            else f"ended with code {ended.code}"
        ) + (f" ({said})" if said is not None else "")
        if attempts >= self._limits.attempts:
            return self._fail(
                record.id,
                "attempts",
                f"{state.phase} {what}; it was tried {attempts} times since the last checkpoint. "
                "Its log has more; resume it when the cause is mended",
            )
        self._store.tell(record.id, f"{state.phase} {what}; it goes on", "warn")
        return state.model_copy(update={"attempts": attempts})

    def _let_go(self, job_id: str, status: Status, message: str) -> None:
        """Nobody works on it from here on; told once."""

        def change(state: JobState) -> JobState:
            if state.is_finished:
                return state
            finished_at = int(time.time()) if status == "cancelled" else None
            update = {"status": status, "attempts": 0, "finished_at": finished_at}
            return state.model_copy(update=update)

        before = self._store.state(job_id)
        if self._store.change(job_id, change) != before:
            self._store.tell(job_id, message)

    def _next_phase(self, record: JobRecord, state: JobState) -> JobState:
        run = self._store.folder(record.id) / RUN
        if state.phase == "train":
            tokens = trained_tokens(run / EVENTS)
            self._store.tell(record.id, "Trained; publishing")
            update: dict[str, Any] = {"phase": "publish", "attempts": 0, "trained_tokens": tokens}
            return self._store.change(record.id, lambda now: now.model_copy(update=update))

        def succeeded(now: JobState) -> JobState:
            update = {"status": "succeeded", "phase": "done", "finished_at": int(time.time())}
            return now.model_copy(update=update)

        after = self._store.change(record.id, succeeded)
        self._store.tell(record.id, f"Succeeded: {after.fine_tuned_model}")
        return after

    def _fail_for_room(self, job_id: str) -> JobState:
        return self._fail(
            job_id,
            "disk_full",
            f"{self._store.runs} has no room left; make some, and resume the job: its last "
            "checkpoint is whole",
        )

    def _fail(self, job_id: str, code: str, message: str) -> JobState:
        (self._store.folder(job_id) / RESERVE).unlink(missing_ok=True)
        error = JobError(code=code, message=message, param=None)

        def change(state: JobState) -> JobState:
            update = {"status": "failed", "error": error, "finished_at": int(time.time())}
            return state.model_copy(update=update)

        state = self._store.change(job_id, change)
        self._store.tell(job_id, f"Failed: {message}", "error")
        return state

    def _progress(self, record: JobRecord) -> int:
        """The steps that a resumed run would not do again."""
        checkpoints = self._store.folder(record.id) / RUN / "checkpoints"
        found = [path.parent.name for path in checkpoints.glob("step-*/state.json")]
        return max((int(name.removeprefix("step-")) for name in found), default=0)


def _reserve(path: Path) -> None:
    with suppress(OSError), path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, _RESERVED_BYTES)


def _begun(state: JobState, reached: int) -> JobState:
    """The state of a job that somebody begins to work on, where it is to be worked on."""
    if state.is_finished or state.wanted != "run":
        return state
    return state.model_copy(
        update={
            "status": "running",
            "starts": state.starts + 1,
            "attempts": 1 if reached > state.reached else state.attempts + 1,
            "reached": max(reached, state.reached),
            "started_at": state.started_at or int(time.time()),
        }
    )


def _trackers(record: JobRecord, run: Path) -> list[str]:
    """Options of `training.run` for the dashboards that the request asks for."""
    options = []
    for wanted in record.request.integrations or []:
        if wanted.type == "tensorboard":
            options.append(f"--tensorboard={run.parent / 'tensorboard'}")
        else:
            options.append(f"--trackio={wanted.trackio.project}")
    return options


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _last_error(log: Path) -> str | None:
    """What the child said of itself, if it ended with an error that it knows."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except FileNotFoundError:
        return None
    last = lines[-1] if lines else ""
    return last.removeprefix("error: ") if last.startswith("error: ") else None
