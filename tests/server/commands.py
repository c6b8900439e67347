"""`rung` as a function: the command line without the second that a process takes to begin.

That it works as a process, too, is shown where a test says so; see `test_cli.py`.
"""

from pathlib import Path
from subprocess import CompletedProcess

from typer.testing import CliRunner

from server.cli import app


def rung(*arguments: str | Path, stdin: str = "", **environment: str) -> CompletedProcess[str]:
    """What a process with these arguments would print, and its exit code.

    Raises whatever the command did not expect: a process would end with a traceback.
    """
    words = [str(argument) for argument in arguments]
    result = CliRunner().invoke(app, words, input=stdin, env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return CompletedProcess(words, result.exit_code, result.stdout, result.stderr)
