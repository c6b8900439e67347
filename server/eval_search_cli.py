"""The command `rung eval search`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from server.options import Models, PolicyUrl, run_command, settings_of


def search(
    file: Annotated[
        Path,
        typer.Argument(help='JSONL, also .gz: {"problem": …, "answer": …}; - for stdin.'),
    ],
    policy: Annotated[str, typer.Option(help="Model that writes.")],
    prm: Annotated[str, typer.Option(help="PRM that judges, NAME or NAME@VERSION; or none.")],
    strategies: Annotated[
        str | None,
        typer.Option(
            help="Short forms with commas, as best-of-16,beam-16x4, or a file with a JSON list of "
            "them or of settings.",
            show_default="all, at two or three widths",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first problems only.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Makes the searches repeatable.")] = 0,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="Of sampling.")] = 0.8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a candidate.")] = 512,
    concurrency: Annotated[int, typer.Option(min=1, help="Searches at a time.")] = 32,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here, for machines.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw accuracy against tokens here: .svg, .png, .pdf.")
    ] = None,
    selections: Annotated[
        str | None,
        typer.Option(
            help="Every strategy under each of these, as prm,weighted: one search serves all.",
            show_default="its own",
        ),
    ] = None,
    outcomes: Annotated[
        Path | None,
        typer.Option(
            help="Keep the outcomes of every strategy here, and take those that are there: what "
            "was broken off goes on, and a new strategy joins the others."
        ),
    ] = None,
    docs: Annotated[
        Path | None,
        typer.Option(help="Page whose lines between figures: begin and end are to be written."),
    ] = None,
    write_curves: Annotated[
        bool,
        typer.Option("--write-curves", help="Keep the curves for the strategy auto."),
    ] = False,
    models: Models = None,
    policy_url: PolicyUrl = None,
) -> None:
    """Measure every search strategy on labelled problems: accuracy against generated tokens.

    Broken off with Ctrl-C, it reports the strategies that were through.
    """
    from server.eval_search import SearchEvalOptions, search_file

    options = SearchEvalOptions(
        file=file,
        policy=policy,
        prm=None if prm == "none" else prm,
        strategies=strategies,
        limit=limit,
        seed=seed,
        temperature=temperature,
        max_tokens=max_tokens,
        concurrency=concurrency,
        json_file=json_file,
        picture=picture,
        selections=selections,
        outcomes=outcomes,
        docs=docs,
        write_curves=write_curves,
        command=shlex.join(["rung", *sys.argv[1:]]),
    )
    run_command(search_file(options, settings_of(models=models, policy_url=policy_url)))
