"""`rung models prune`: old versions removed, but none that is needed."""

from pathlib import Path
from typing import Annotated

import typer

from server.options import Json, Models, settings_of, told_errors

DAY_S = 86_400


def prune(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    keep: Annotated[
        int, typer.Option(min=1, help="The newest versions, and those to go back to, that stay.")
    ],
    older_than: Annotated[
        float, typer.Option(min=0, metavar="DAYS", help="Younger ones stay, too.")
    ] = 0.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")
    ] = False,
    models: Models = None,
    runs: Annotated[
        Path | None, typer.Option(help="Folder of training jobs.", show_default="runs")
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove old versions, but none that serves, may be gone back to, or is needed by another."""
    import json
    from dataclasses import asdict

    with told_errors():
        from server.retention import prune_versions

        settings = settings_of(models=models, runs=runs)
        pruned = prune_versions(
            settings.models,
            settings.runs,
            name,
            keep=keep,
            older_than_s=DAY_S * older_than,
            dry_run=dry_run,
        )
    if as_json:
        print(json.dumps(asdict(pruned) | {"dry_run": dry_run}))
        return
    for version in pruned.removed:
        print(f"{version:>12}  {'would be removed' if dry_run else 'removed'}")
    for version, why in pruned.kept.items():
        print(f"{version:>12}  stays: {why}")
