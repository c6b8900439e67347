"""The command `rung eval rerank`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from server.options import Models, run_command, settings_of


def rerank(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="POOL",
            help='JSONL, also .gz: {"problem": …, "candidates": [{"step_scores": […], "extracted": '
            'answer or null, "correct": true, "tokens": 211}, …]}; - for stdin.',
        ),
    ],
    folds: Annotated[
        int, typer.Option(min=2, max=100, help="Of cross-validation over problems.")
    ] = 10,
    orders: Annotated[
        int,
        typer.Option(min=0, max=1000, help="Random orders to average over; 0: only the recorded."),
    ] = 20,
    wave: Annotated[int, typer.Option(min=1, help="adaptive: candidates per wave.")] = 1,
    budget: Annotated[
        float,
        typer.Option(min=0.01, max=1, help="adaptive: part of the cost of all candidates."),
    ] = 0.24,
    seed: Annotated[int, typer.Option(min=0, help="Of folds and orders.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here, for machines.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw accuracy here: .svg, .png, .pdf.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Keep the fit beside this PRM, whose scores these are.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="With --model: who wrote them.")] = None,
    models: Models = None,
) -> None:
    """Compare every selection on recorded candidates: accuracy against their number and cost.

    First, majority, best, weighted, calibrated, oracle, and sampling in waves; no model is run.
    """
    from server.eval_rerank import RerankOptions, rerank_file

    options = RerankOptions(
        file=file,
        folds=folds,
        orders=orders,
        wave=wave,
        budget=budget,
        seed=seed,
        json_file=json_file,
        picture=picture,
        model=model,
        policy=policy,
        command=shlex.join(["rung", *sys.argv[1:]]),
    )
    run_command(rerank_file(options, settings_of(models=models)))
