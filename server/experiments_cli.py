"""The command `rung experiments`: a paper's claim, scaled down, in processes of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from server.options import told_errors


def experiments(
    name: Annotated[str, typer.Argument(help="See docs/experiments/.")],
    out: Annotated[Path, typer.Option(help="Where runs and reports go; a stopped one goes on.")] = (
        Path("runs/experiments")
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Only show that it works; the figures mean nothing.")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 2,
    docs: Annotated[Path | None, typer.Option(help="Publish the report here, too.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print verdict and page as JSON at the end.")
    ] = False,
) -> None:
    """Test what a paper claims of its algorithm, with this package's own loop."""
    with told_errors():
        from importlib.util import find_spec

        from prm.errors import InvalidInput
        from training.experiments.table import EXPERIMENTS

        if name not in EXPERIMENTS:
            raise InvalidInput(
                f"there is no experiment {name!r}; there are {', '.join(EXPERIMENTS)}"
            )
        if find_spec("matplotlib") is None:
            raise InvalidInput("experiments draw pictures: pip install 'rung[train]'")
    command = [sys.executable, "-m", "training.experiments.run", name, f"--out={out}"]
    command += [f"--processes={processes}"] + ["--quick"] * quick + ["--json"] * as_json
    command += [f"--docs={docs}"] if docs is not None else []
    try:
        sys.exit(subprocess.run(command).returncode)
    except KeyboardInterrupt:
        # The runs heard it, too, and have ended.
        sys.exit(130)
