"""The command `rung train`: a job's file, its run as a process of its own; or a run followed."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from server.options import Key, Url, connection_of, run_command, told_errors


def train(
    job: Annotated[
        Path,
        typer.Argument(
            help="TOML or JSON, see docs/training.md; with --follow a server's job by its id, or a "
            "run's folder."
        ),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", help="Train nothing: show how a job or a run goes on.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder.", show_default="runs/NAME")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
    processes: Annotated[
        int,
        typer.Option(
            min=1, help="Train by so many processes of this machine, a device each; see the docs."
        ),
    ] = 1,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the run here when it is done: .svg, .png, .pdf.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write TensorBoard's event files into this folder, too.")
    ] = None,
    trackio: Annotated[
        str | None, typer.Option(help="Tell this project of trackio's, too.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print folders and figures as JSON at the end.")
    ] = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Train a policy or a PRM as a job says, from outcome labels."""
    if follow:
        from server.follow import follow as show

        run_command(show(str(job), connection_of(None, url, api_key)))
        return
    with told_errors():
        from prm.evaluation.picture import check_picture
        from training.environment import training_environment
        from training.spec import read_job
        from training.trackers import Trackers

        # A wrong job is refused here, in a moment, before torch is loaded.
        folder = out or Path("runs") / read_job(job).name
        if plot is not None:
            check_picture(plot, "--plot")
        trackers = Trackers(tensorboard=tensorboard, trackio=trackio)
        trackers.check()
    command = [sys.executable, "-m", "training.run"]
    if processes > 1:
        command = [sys.executable, "-m", "training.launch", f"--processes={processes}"]
    command += [str(job), f"--out={folder}"]
    command += ["--resume"] * resume + ["--json"] * as_json
    command += [f"--plot={plot}"] if plot is not None else []
    command += trackers.options
    try:
        sys.exit(subprocess.run(command, env=training_environment()).returncode)
    except KeyboardInterrupt:
        # The run heard it, too, and has ended.
        sys.exit(130)
