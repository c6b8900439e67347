"""What `rung jobs` asks and prints."""

import json
import time
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.table import Table

from server.connection import Connection

_JOBS = "/v1/fine_tuning/jobs"
_EVENTS = 5


async def print_jobs(connection: Connection, *, limit: int, as_json: bool) -> None:
    """A line per job, or of JSON. Raises RungError."""
    page = await connection.ask("GET", f"{_JOBS}?limit={limit}")
    if as_json:
        for job in page["data"]:
            print(json.dumps(job))
        return
    table = Table("job", "status", "method", "model", "makes", "created")
    for job in page["data"]:
        table.add_row(
            job["id"],
            _status(job),
            job["method"]["type"],
            job["model"],
            ", ".join(job["publishes"]),
            _clock(job["created_at"]),
        )
    Console().print(table)


async def print_job(
    connection: Connection, job_id: str, what: str | None, *, as_json: bool
) -> None:
    """Ask for something of a job, or for nothing, and print it. Raises RungError."""
    path = f"{_JOBS}/{quote(job_id, safe='')}"
    job = await connection.ask("POST", f"{path}/{what}") if what else None
    job = job or await connection.ask("GET", path)
    if as_json:
        print(json.dumps(job))
        return
    print(f"{job['id']}: {_status(job)}, {job['method']['type']} on {job['model']}")
    if job["fine_tuned_model"] or job["publishes"]:
        made = job["fine_tuned_model"]
        print(f"makes {', '.join(job['publishes'])}{f'; published {made}' if made else ''}")
    if job["error"]:
        print(f"failed: {job['error']['message']}")
    if job["estimated_finish"]:
        print(f"will be done at about {_clock(job['estimated_finish'])}")
    if what is None:
        events = await connection.ask("GET", f"{path}/events?limit={_EVENTS}")
        for event in reversed(events["data"]):
            print(f"{_clock(event['created_at'])}  {event['message']}")


def _status(job: dict[str, Any]) -> str:
    """What OpenAI's six words say, and what they do not."""
    words = [job["status"]]
    words += ["paused"] if job["paused"] else []
    words += [job["verdict"]] if job["verdict"] else []
    return ", ".join(words)


def _clock(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
