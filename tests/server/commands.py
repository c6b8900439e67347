"""`rung`, as a function and as the process that a user starts."""

import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

from typer.testing import CliRunner

from server.cli import app


def rung(*arguments: str | Path, stdin: str = "", **environment: str) -> CompletedProcess[str]:
    """What a process with these arguments would print, and its exit code.

    It has not the second that a process takes to begin. Not for `serve`, which sets up logging for
    its whole process. Raises whatever the command did not expect: a process would end with a
    traceback.
    """
    words = [str(argument) for argument in arguments]
    result = CliRunner().invoke(app, words, input=stdin, env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return CompletedProcess(words, result.exit_code, result.stdout, result.stderr)


def rung_process(*arguments: str, stdin: str = "", **environment: str) -> CompletedProcess[str]:
    """The same by a process."""
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        env=os.environ | environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )
