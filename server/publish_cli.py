"""`rung models publish`: what a training run has made, as versions."""

import json
from pathlib import Path
from typing import Annotated

import typer

from server.import_cli import publishing
from server.options import Json, Models, settings_of


def publish_run(
    run: Annotated[Path, typer.Argument(help="Folder of a run that is done (rung train --out).")],
    name: Annotated[
        str | None,
        typer.Option(
            help="NAME-policy, NAME-prm and NAME-reference are made of it.",
            show_default="the job's",
        ),
    ] = None,
    version: Annotated[str, typer.Option(help="Their version; versions never change.")] = "1",
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="NAME@VERSION",
            help="The PRM's reference, where the job's folder is gone.",
            show_default="published with it, or found by its weights",
        ),
    ] = None,
    models: Models = None,
    device: Annotated[
        str | None, typer.Option(help="Where golden scores are computed.", show_default="cpu")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live/--no-live", help="Let them answer for their names.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Publish what a run has trained: its policy, its PRM, and the reference of that.

    How the PRM is read is told from the run's job.json, and the trainer's own scores have to come
    out.
    """
    from training.publishing import PublishRequest
    from training.publishing import publish_run as publish

    settings = settings_of(models=models, device=device)
    request = PublishRequest(
        run=run,
        root=settings.models,
        name=name,
        version=version,
        reference=reference,
        live=live,
        device=settings.device,
        threads=settings.engine_options.num_threads,
    )
    with publishing(settings.models, as_json) as watch:
        published = publish(request, watch)
    if as_json:
        lines = [
            {"role": one.role, "key": one.key, "is_new": one.imported is not None}
            for one in published
        ]
        print(json.dumps({"published": lines, "models": str(settings.models), "live": live}))
        return
    for one in published:
        detected = one.imported.detected if one.imported else None
        how = "" if detected is None else f", {detected.recipe.label}"
        state = "was there before" if one.imported is None else "live" if live else "not live"
        typer.echo(f"{one.role:<10} {one.key}, {state}{how}")
