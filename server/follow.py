"""`rung train --follow`: a bar with what a job, or a run, tells of its steps, to its end."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from prm.errors import InvalidInput, Unavailable
from server.connection import Connection
from server.jobs.records import JOB_ID, JobState
from server.jobs.store import EVENTS, JOB, JobStore
from training.progress import Advance, in_passing, say, stage
from training.publishing import read_run

_POLL_S = 0.3
# A server that is started again is away for a while.
_MOST_FAILURES = 30
_JOBS = "/v1/fine_tuning/jobs"


async def follow(what: str, connection: Connection) -> None:
    """Show a job of the server at `--url`, or a job's or a run's folder.

    Ends the process with 1 where the job did not succeed. Raises InvalidInput for what is none.
    """
    folder = Path(what)
    if JOB_ID.fullmatch(what) and connection.url is not None:
        _end(what, await _follow_server(what, connection))
    elif JOB_ID.fullmatch(folder.name) and (folder / JOB).is_file():
        _end(folder.name, await _follow_store(JobStore(folder.parent), folder.name))
    elif JOB_ID.fullmatch(what) and (connection.settings.runs / what / JOB).is_file():
        _end(what, await _follow_store(JobStore(connection.settings.runs), what))
    elif (folder / JOB).is_file():
        await _follow_run(folder)
    else:
        raise InvalidInput(
            f"--follow {what}: neither a run's folder nor a job's; name the server of a job with "
            "--url, or RUNG_URL"
        )


async def _follow_server(job_id: str, connection: Connection) -> dict[str, Any]:
    job = await connection.ask("GET", f"{_JOBS}/{job_id}")
    method = job["method"]
    with stage(job_id, method[method["type"]]["steps"]) as advance:
        async for event in _events(job_id, connection):
            _show(event, advance)
    return dict(await connection.ask("GET", f"{_JOBS}/{job_id}"))


async def _events(job_id: str, connection: Connection) -> AsyncIterator[dict[str, Any]]:
    """All events; a stream that breaks off is taken up behind the last one."""
    after, failures = "", 0
    while True:
        try:
            path = f"{_JOBS}/{job_id}/events?stream=true{after}"
            async for event in connection.events(path):
                after, failures = f"&after={event['id']}", 0
                yield event
            return
        except Unavailable:
            failures += 1
            if failures > _MOST_FAILURES:
                raise
            await asyncio.sleep(1)


async def _follow_store(store: JobStore, job_id: str) -> dict[str, Any]:
    steps, place = store.record(job_id).training.steps, 0
    with stage(job_id, steps) as advance:
        while True:
            state = store.state(job_id)
            events, place = store.events_from(job_id, place)
            for event in events:
                _show(event.model_dump(), advance)
            if state.is_finished:
                return _told(state)
            await asyncio.sleep(_POLL_S)


async def _follow_run(folder: Path) -> None:
    """A run that was started by hand: it is over with its last step."""
    steps, place, step = read_run(folder).steps, 0, 0
    with stage(folder.name, steps) as advance:
        while step < steps:
            try:
                with (folder / EVENTS).open("rb") as file:
                    # A resumed run cuts off what it does again.
                    place = place if place <= file.seek(0, 2) else 0
                    file.seek(place)
                    raw = file.read()
            except FileNotFoundError:
                raw = b""
            whole = raw[: raw.rfind(b"\n") + 1]
            place += len(whole)
            for line in whole.splitlines():
                row = json.loads(line)
                if row["kind"] == "step":
                    step = row["step"]
                    advance(step, in_passing(row))
            if step < steps:
                await asyncio.sleep(_POLL_S)


def _show(event: dict[str, Any], advance: Advance) -> None:
    data = event["data"]
    if event["type"] == "metrics" and "step" in data:
        advance(int(data["step"]), in_passing(data))
    if event["type"] == "message" or event["message"].startswith("Evaluation"):
        clock = time.strftime("%H:%M:%S", time.localtime(event["created_at"]))
        say(f"{clock} {event['message']}")


def _told(state: JobState) -> dict[str, Any]:
    return state.model_dump(mode="json")


def _end(job_id: str, job: dict[str, Any]) -> None:
    """The last word, and the exit code."""
    error = job["error"]["message"] if job["error"] else None
    verdict = f", {job['verdict']} by its gate" if job["verdict"] else ""
    made = f": {job['fine_tuned_model']}" if job["fine_tuned_model"] else ""
    say(f"{job_id} {job['status']}{made}{verdict}{f': {error}' if error else ''}")
    if job["status"] != "succeeded":
        sys.exit(1)
