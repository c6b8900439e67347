"""`rung models promote | rollback | canary | shadow | versions | gate | prune`: who answers.

In a folder, whose servers see the change and prove the version before they swap; or, with `--url`,
through a running server, which answers when it has.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from server.options import Json, Key, Models, Url, run_command, settings_of, told_errors
from server.prune_cli import prune

if TYPE_CHECKING:
    from prm.registry import Pointer

versions_app = typer.Typer(no_args_is_help=True)
versions_app.command()(prune)

Name = Annotated[str, typer.Argument(help="The model's name.")]
Version = Annotated[str, typer.Argument(help="One of its versions.")]
Trial = Annotated[str, typer.Argument(help="One of its versions, or none to end it.")]
Fraction = Annotated[float, typer.Option(help="The share of callers.")]


@versions_app.command()
def promote(
    name: Name,
    version: Version,
    models: Models = None,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a version live; refused for one that its gate has rejected."""

    def change(root: Path) -> "Pointer":
        from prm.registry import promote

        return promote(root, name, version)

    _change(name, "promote", {"version": version}, change, models, url, api_key, as_json)


@versions_app.command()
def rollback(
    name: Name,
    models: Models = None,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Go back to the version that was live before."""

    def change(root: Path) -> "Pointer":
        from prm.registry import rollback

        return rollback(root, name)

    _change(name, "rollback", {}, change, models, url, api_key, as_json)


@versions_app.command()
def canary(
    name: Name,
    version: Trial,
    fraction: Fraction = 0.1,
    models: Models = None,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Let a version answer a share of the callers, watched by the server."""
    _try_out("canary", name, version, fraction, models, url, api_key, as_json)


@versions_app.command()
def shadow(
    name: Name,
    version: Trial,
    fraction: Fraction = 1.0,
    models: Models = None,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Let a version score beside the live one, whose scores are the ones given."""
    _try_out("shadow", name, version, fraction, models, url, api_key, as_json)


@versions_app.command()
def versions(name: Name, models: Models = None, as_json: Json = False) -> None:
    """All versions of a model: which answer, which did, which were rejected and why."""
    import json

    with told_errors():
        from prm.registry import published, read_pointer, read_verdict

        root = settings_of(models=models).models
        pointer, rows = read_pointer(root, name), []
        for version in published(root, name):
            verdict = read_verdict(root, name, version)
            is_rejected = verdict is not None and not verdict.passed
            state = "rejected" if is_rejected else pointer.state_of(version)
            reason = verdict.reason if verdict is not None else None
            rows.append({"version": version, "state": state, "reason": reason})
    if as_json:
        print(json.dumps({"name": name, "versions": rows}))
        return
    for row in rows:
        print(f"{row['version']:>12}  {row['state']:<10} {row['reason'] or ''}".rstrip())


@versions_app.command()
def gate(
    name: Name,
    version: Version,
    file: Annotated[Path, typer.Argument(help="Held-out labelled responses; see docs.")],
    metric: Annotated[
        Literal["first_error_f1", "best_of_n", "auroc"], typer.Option(help="What decides.")
    ] = "best_of_n",
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="How much worse it may be shown to be.")
    ] = 0.01,
    decide: Annotated[
        bool, typer.Option("--decide", help="Keep the verdict; what passes goes live.")
    ] = False,
    models: Models = None,
    as_json: Json = False,
) -> None:
    """Compare a version with the live one on held-out responses: is it not worse?"""
    from prm.evaluation.gate import GateSettings
    from server.gate import GateOptions, gate_version

    options = GateOptions(
        name=name,
        version=version,
        file=file,
        settings=GateSettings(metric=metric, margin=margin),
        decides=decide,
        as_json=as_json,
    )
    run_command(gate_version(options, settings_of(models=models)))


def _try_out(
    kind: Any,
    name: str,
    version: str,
    fraction: float,
    models: Path | None,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> None:
    wanted = None if version == "none" else version

    def change(root: Path) -> "Pointer":
        from prm.registry import try_out

        return try_out(root, name, kind, wanted, fraction)

    body = {"version": wanted, "fraction": fraction}
    _change(name, kind, body, change, models, url, api_key, as_json)


def _change(
    name: str,
    what: str,
    body: dict[str, Any],
    change: Callable[[Path], "Pointer"],
    models: Path | None,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Change the pointer in the folder or through the server, and say what it is then."""
    import json

    with told_errors():
        if url is None:
            from server.announcements import announce

            settings = settings_of(models=models)
            told = change(settings.models).model_dump()
            announce(settings.redis_url, name)
            told["previous"] = told["previous"][0] if told["previous"] else None
        else:
            import asyncio

            from server.connection import Connection

            connection = Connection(settings=settings_of(), url=url, api_key=api_key)
            answer = asyncio.run(connection.change_version(name, what, body))
            told = {field: answer[field] for field in ("live", "previous", "canary", "shadow")}
    if as_json:
        print(json.dumps({"name": name} | told))
        return
    print(f"{name}: live {told['live']}", end="")
    print(f", before it {told['previous']}" if told["previous"] else "", end="")
    for kind in ("canary", "shadow"):
        if trial := told[kind]:
            print(f", {kind} {trial['version']} for {trial['fraction']:.0%} of callers", end="")
    print()
