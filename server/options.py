"""Options that several commands take, and how a command ends. Imported by every `rung`."""

import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from server.connection import Connection
    from server.settings import Settings

Models = Annotated[
    Path | None, typer.Option(help="Folder of model versions.", show_default="the bundled ones")
]
Url = Annotated[
    str | None,
    typer.Option(
        envvar="RUNG_URL", help="A running server to ask; without it, an engine is started here."
    ),
]
Key = Annotated[str | None, typer.Option(envvar="RUNG_API_KEY", help="API key for --url.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
PolicyUrl = Annotated[
    str | None,
    typer.Option(
        help="OpenAI-compatible server whose models write the steps, as http://127.0.0.1:8000/v1."
    ),
]
ScoringUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--scoring-url",
        metavar="NAME=URL",
        help="vLLM server that scores this model in the engine's place; repeatable.",
    ),
]


def settings_of(**given: Any) -> "Settings":
    """Options over environment over defaults; a bad value ends the command."""
    from pydantic import ValidationError

    from prm.validation import first_problem
    from server.secret_files import SecretFileError
    from server.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        fail(first_problem(error), code=2)
    except SecretFileError as error:
        fail(str(error), code=2)


def connection_of(
    models: Path | None, url: str | None, api_key: str | None, policy_url: str | None = None
) -> "Connection":
    """Where the answers come from."""
    from server.connection import Connection

    return Connection(
        settings=settings_of(models=models, policy_url=policy_url), url=url, api_key=api_key
    )


def scoring_urls_of(given: list[str] | None) -> dict[str, str] | None:
    """URLs by model, of options that say NAME=URL."""
    pairs = [option.partition("=") for option in given or []]
    for option, (name, _, url) in zip(given or [], pairs, strict=True):
        if not name or not url:
            fail(f"--scoring-url {option!r} is not NAME=URL", code=2)
    return {name: url for name, _, url in pairs} or None


def answers_of(given: str) -> dict[str, Any]:
    """A request's `answers`: of an object as JSON, of @FILE that holds one, or of a kind's name."""
    import json

    text, where = given, "--answers"
    if given.startswith("@"):
        where = f"--answers {given}"
        try:
            text = Path(given[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            fail(f"{where}: cannot be read as UTF-8 text: {error}", code=2)
    elif not given.lstrip().startswith("{"):
        return {"type": given}
    try:
        answers = json.loads(text)
    except (ValueError, RecursionError) as error:
        fail(f"{where}: not JSON: {error}", code=2)
    if not isinstance(answers, dict):
        fail(f'{where}: not a JSON object, as {{"type": "math"}}', code=2)
    return answers


def run_command(work: Coroutine[Any, Any, None]) -> None:
    """Run a command's coroutine; our own errors become one line on stderr."""
    import asyncio

    with told_errors():
        asyncio.run(work)


@contextmanager
def told_errors() -> Iterator[None]:
    """Our own errors become a line on stderr and an exit code."""
    from prm.errors import CallerError, ModelFolderError, RungError

    try:
        yield
    except (CallerError, ModelFolderError) as error:
        fail(str(error), code=2)
    except RungError as error:
        fail(str(error), code=1)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(message: str, *, code: int) -> NoReturn:
    """One line on stderr, and the exit code."""
    typer.echo(f"rung: {message}", err=True)
    sys.exit(code)
