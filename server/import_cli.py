"""`rung models import`: its options, what it says while it works, and what it prints."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from server.options import Json, Models, fail, settings_of, told_errors

if TYPE_CHECKING:
    from prm.importing import Imported, Watch

RECIPE, SCORES = "How it is read", "Golden scores"


def import_model(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a downloaded checkpoint, or of a LoRA adapter.")
    ],
    name: Annotated[str, typer.Option(help="What it is to be called here.")],
    version: Annotated[str, typer.Option(help="Its version; versions never change.")] = "1",
    models: Models = None,
    family: Annotated[
        str | None,
        typer.Option(
            help="PRM family.", show_default="told from the files", rich_help_panel=RECIPE
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe of the family.", show_default="told from the files", rich_help_panel=RECIPE
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="NAME@VERSION",
            help="Implicit PRM: the published reference model (of an adapter: its base), or none.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Implicit PRM: β.", rich_help_panel=RECIPE)
    ] = None,
    step_value: Annotated[
        Literal["single", "accumulative"] | None,
        typer.Option(help="Implicit PRM: a step's number.", rich_help_panel=RECIPE),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other setting of the recipe, its value as JSON or text; repeatable.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            help=r"What parts steps; \n and \t are understood.",
            show_default="the family's",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    aggregation: Annotated[
        Literal["min", "last", "mean", "product", "max", "sum"] | None,
        typer.Option(
            help="Step scores to one.", show_default="the authors'", rich_help_panel=RECIPE
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Below it a step counts as wrong.",
            show_default="0.5",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    policy: Annotated[
        bool, typer.Option("--policy", help="It is a language model that writes; no PRM.")
    ] = False,
    golden: Annotated[
        Path | None,
        typer.Option(
            help='JSONL: {"problem": …, "steps": […]} and, to be reproduced, "scores" or "raw".',
            show_default="five built-in ones, nothing expected",
            rich_help_panel=SCORES,
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, help="How far a score may lie from the expected.", rich_help_panel=SCORES
        ),
    ] = 0.01,
    device: Annotated[
        str | None,
        typer.Option(help="Where they are computed.", show_default="cpu", rich_help_panel=SCORES),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live/--no-live", help="Let it answer for its name.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, compute all, write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Publish a checkpoint as a version, or say why it is not what it should be.

    Its family is told from its files, its golden scores are computed by the engine, and nothing is
    written unless all fits.
    """
    from prm.importing import Asked, ImportRequest, import_checkpoint

    recipe_settings = _settings(setting, beta=beta, step_value=step_value)
    of_a_prm = (family, recipe, reference, aggregation, threshold, recipe_settings or None)
    if policy and any(option is not None for option in of_a_prm):
        fail("--policy: a policy has no family, recipe, aggregation or threshold", code=2)
    settings = settings_of(models=models, device=device)
    request = ImportRequest(
        folder=folder,
        name=name,
        version=version,
        root=settings.models,
        asked=Asked(family=family, recipe=recipe, settings=recipe_settings),
        reference=reference,
        step_separator=None if separator is None else _unescaped(separator),
        aggregation=aggregation,
        threshold=threshold,
        is_policy=policy,
        golden=golden,
        tolerance=tolerance,
        live=live,
        dry_run=dry_run,
        device=settings.device,
        threads=settings.engine_options.num_threads,
    )
    with publishing(settings.models, as_json) as watch:
        imported = import_checkpoint(request, watch)
    place = None if dry_run else settings.models / name / version
    if as_json:
        print(json.dumps(_as_json(imported, place, live=live)))
    else:
        _print(imported, place, live=live)


def _settings(given: list[str] | None, **named: Any) -> dict[str, Any]:
    settings = {name: value for name, value in named.items() if value is not None}
    for option in given or []:
        name, equals, value = option.partition("=")
        if not name or not equals or name in ("name", "revision"):
            fail(f"--set {option!r} is not KEY=VALUE (a recipe's name is --recipe)", code=2)
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


@contextmanager
def publishing(models: Path, as_json: bool) -> "Iterator[Watch]":
    """Around what writes versions: its bar, and its errors as a line and an exit code."""
    # So that what was begun is removed when somebody ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with told_errors():
        try:
            with _watched(as_json) as watch:
                yield watch
        except OSError as error:
            fail(f"{error.filename or models}: {error.strerror or error}", code=1)


@contextmanager
def _watched(as_json: bool) -> "Iterator[Watch]":
    """A bar on a terminal that is renamed as the work goes on."""
    from rich.console import Console

    from server.commands import progress_bar

    with progress_bar(Console(), as_json) as progress:
        task = progress.add_task("checking", total=None)

        def watch(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total or None)

        yield watch


def _as_json(imported: "Imported", place: Path | None, *, live: bool) -> dict[str, Any]:
    manifest = imported.manifest.model_dump(mode="json", exclude={"files", "created"})
    return {
        **manifest,
        "evidence": imported.detected.evidence if imported.detected else None,
        "copied": sorted(imported.files.paths),
        "bytes": imported.num_bytes,
        "left_behind": imported.files.left_behind,
        "notes": imported.files.notes,
        "published": None if place is None else str(place),
        "live": place is not None and live,
    }


def _print(imported: "Imported", place: Path | None, *, live: bool) -> None:
    from prm.families.base import sigmoid

    manifest, detected = imported.manifest, imported.detected
    if detected is None:
        typer.echo("policy       a causal language model")
    else:
        typer.echo(f"family       {detected.family}: {detected.evidence}")
        shown = detected.recipe.model_dump(mode="json", exclude={"name", "revision"})
        typer.echo(f"recipe       {detected.recipe.label} {json.dumps(shown, ensure_ascii=False)}")
    typer.echo(f"separator    {json.dumps(manifest.step_separator)}")
    if manifest.kind == "prm":
        typer.echo(f"aggregation  {manifest.aggregation}, threshold {manifest.threshold:g}")
    for golden in manifest.golden:
        numbers = golden.raw if detected is None else map(sigmoid, golden.raw)
        listed = " ".join(f"{number:.4f}" for number in numbers)
        typer.echo(f"golden       {listed}   {_shortened(golden.messages[-1].content)}")
    typer.echo(f"files        {len(imported.files.paths)}, {imported.num_bytes / 1e6:.1f} MB")
    if imported.files.left_behind:
        typer.echo(f"left behind  {', '.join(imported.files.left_behind)}")
    for note in imported.files.notes:
        typer.echo(f"note         {note}")
    if place is None:
        typer.echo("dry run      nothing was written")
    else:
        state = "live" if live else "not live"
        typer.echo(f"published    {manifest.key}, {state}, in {place}")


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else line[:39] + "…"
