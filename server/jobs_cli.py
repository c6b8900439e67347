"""`rung jobs list | show | cancel | pause | resume`: training jobs of a running server."""

from typing import Annotated

import typer

from server.options import Json, Key, Url, connection_of, run_command

jobs_app = typer.Typer(help="Training jobs of a server (--url).", no_args_is_help=True)

Job = Annotated[str, typer.Argument(help="Its id, as ftjob-….")]


@jobs_app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 20,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Jobs, the newest first."""
    from server.job_commands import print_jobs

    run_command(print_jobs(connection_of(None, url, api_key), limit=limit, as_json=as_json))


@jobs_app.command()
def show(job: Job, url: Url = None, api_key: Key = None, as_json: Json = False) -> None:
    """One job: how far it is, what it makes, and what happened to it last."""
    _ask(job, None, url, api_key, as_json)


@jobs_app.command()
def cancel(job: Job, url: Url = None, api_key: Key = None, as_json: Json = False) -> None:
    """End a job."""
    _ask(job, "cancel", url, api_key, as_json)


@jobs_app.command()
def pause(job: Job, url: Url = None, api_key: Key = None, as_json: Json = False) -> None:
    """Stop a job behind a checkpoint; `resume` goes on from there."""
    _ask(job, "pause", url, api_key, as_json)


@jobs_app.command()
def resume(job: Job, url: Url = None, api_key: Key = None, as_json: Json = False) -> None:
    """Let a job go on that was paused or has failed."""
    _ask(job, "resume", url, api_key, as_json)


def _ask(job: str, what: str | None, url: str | None, api_key: str | None, as_json: bool) -> None:
    from server.job_commands import print_job

    run_command(print_job(connection_of(None, url, api_key), job, what, as_json=as_json))
