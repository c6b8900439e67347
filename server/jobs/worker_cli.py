"""The command `rung worker`."""

from pathlib import Path
from typing import Annotated

import typer

from server.options import Models, fail, run_command, settings_of


def worker(
    runs: Annotated[
        Path | None, typer.Option(help="Folder of jobs, as the server has it.", show_default="runs")
    ] = None,
    models: Models = None,
    redis_url: Annotated[
        str | None, typer.Option(help="The server's Redis; or REDIS_URL.", show_default="none")
    ] = None,
) -> None:
    """Run training jobs that a server has accepted, on any machine with the same folders."""
    settings = settings_of(runs=runs, models=models, redis_url=redis_url)
    if settings.redis_url is None:
        fail(
            "a worker hears of jobs by Redis: set REDIS_URL or --redis-url, for the server, too; "
            "without one `rung serve` runs them itself",
            code=2,
        )
    from server.jobs.worker import work
    from server.serve import configure_logging

    configure_logging(settings.log_format)
    run_command(work(settings))
