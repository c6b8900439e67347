"""`rung feedback report`: whom a PRM's labels come from, and where they disagree."""

from typing import Annotated

import typer

from server.options import Json, Key, Models, Url, connection_of, run_command, settings_of

feedback_app = typer.Typer(help="Look at the feedback on what was served.", no_args_is_help=True)


@feedback_app.callback()
def _feedback() -> None:
    """Keeps `report` a command of its own."""


@feedback_app.command()
def report(
    model: Annotated[
        str | None, typer.Option(help="PRM that learns from it.", show_default="the only one")
    ] = None,
    models: Models = None,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Print who labelled how much, who contradicts whom, and what each key weighs.

    Without --url, of the feedback in RUNG_RUNS.
    """
    from server.feedback.printing import local_report, print_report

    async def work() -> None:
        if url is None:
            found = await local_report(settings_of(models=models), model)
        else:
            found = await connection_of(models, url, api_key).feedback_report(model)
        print_report(found, as_json=as_json)

    run_command(work())
