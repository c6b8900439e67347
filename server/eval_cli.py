"""`rung eval`: what PRMs and searches are worth on labelled data, and calibrations."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from server.eval_rerank_cli import rerank
from server.eval_search_cli import search
from server.options import Json, Key, Models, Url, connection_of, run_command

eval_app = typer.Typer(
    help="Measure a PRM on labelled responses, and search strategies on problems; calibrate.",
    no_args_is_help=True,
)

eval_app.command()(search)
eval_app.command()(rerank)

File = Annotated[
    Path,
    typer.Argument(
        help='JSONL, also .gz: {"problem": …, "steps": […] or "response": …, "labels": '
        '[true, false, null] or "first_error": 0-based, -1 or null for none, "correct": true}; '
        "- for stdin."
    ),
]
Model = Annotated[str | None, typer.Option(help="PRM.", show_default="the only one")]
Recorded = Annotated[
    bool, typer.Option("--recorded", help="Take the lines' own step_scores; run no model.")
]
Plot = Annotated[Path | None, typer.Option(help="Draw the reliability diagram here: .svg, .png.")]


@eval_app.command()
def calibrate(
    file: File,
    model: Model = None,
    policy: Annotated[
        str | None, typer.Option(help="Who wrote the steps; not needed with --dry-run.")
    ] = None,
    method: Annotated[
        Literal["isotonic", "platt"],
        typer.Option(help="Map of a step's score; platt for less than about 1000 steps."),
    ] = "isotonic",
    holdout: Annotated[
        float, typer.Option(min=0.05, max=0.9, help="Share of the problems to measure on.")
    ] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, and write nothing.")] = False,
    recorded: Recorded = False,
    plot: Plot = None,
    models: Models = None,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Fit a calibration for one PRM version and one policy, measure it, and keep it.

    It is written to the model folder (--models); a server takes it up when it starts.
    """
    from server.evaluate import CalibrateOptions, calibrate_file

    options = CalibrateOptions(
        file=file,
        model=model,
        recorded=recorded,
        plot=plot,
        as_json=as_json,
        policy=policy,
        method=method,
        holdout=holdout,
        seed=seed,
        dry_run=dry_run,
    )
    run_command(calibrate_file(options, connection_of(models, url, api_key)))


@eval_app.command()
def reliability(
    file: File,
    model: Model = None,
    policy: Annotated[
        str | None, typer.Option(help="Whose calibration.", show_default="the only one")
    ] = None,
    recorded: Recorded = False,
    plot: Plot = None,
    models: Models = None,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Measure the calibration that is there on other labelled responses; fit nothing."""
    from server.evaluate import ReliabilityOptions, measure_file

    options = ReliabilityOptions(
        file=file, model=model, recorded=recorded, plot=plot, as_json=as_json, policy=policy
    )
    run_command(measure_file(options, connection_of(models, url, api_key)))


@eval_app.command()
def aggregations(
    file: File,
    model: Model = None,
    folds: Annotated[int, typer.Option(min=2, max=100, help="Of cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds.")] = 0,
    recorded: Recorded = False,
    models: Models = None,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Compare min, last, mean, … and a fitted aggregation on responses labelled `correct`."""
    from server.evaluate import RankingOptions, rank_file

    options = RankingOptions(
        file=file, model=model, recorded=recorded, as_json=as_json, folds=folds, seed=seed
    )
    run_command(rank_file(options, connection_of(models, url, api_key)))
