"""The command line: `rung serve | score | search | train | jobs | eval | models | keys`.

Entry points are thin and cheap: everything heavier than the parser is imported inside a command,
so that `--help` answers at once. Exit codes: 0 done, 1 failed, 2 bad usage or a bad model folder.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from server.eval_cli import eval_app
from server.experiments_cli import experiments
from server.feedback_cli import feedback_app
from server.import_cli import import_model
from server.jobs.worker_cli import worker
from server.jobs_cli import jobs_app
from server.options import (
    Json,
    Key,
    Models,
    PolicyUrl,
    ScoringUrls,
    Url,
    answers_of,
    connection_of,
    fail,
    run_command,
    scoring_urls_of,
    settings_of,
    told_errors,
)
from server.publish_cli import publish_run
from server.train_cli import train
from server.versions_cli import versions_app

app = typer.Typer(
    help="Rung: process reward models in production.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
models_app = typer.Typer(help="Look at the model folder, add to it.", no_args_is_help=True)
models_app.command("import")(import_model)
models_app.command("publish")(publish_run)
models_app.add_typer(versions_app)
app.add_typer(models_app, name="models")
app.add_typer(eval_app, name="eval")
app.add_typer(jobs_app, name="jobs")
app.add_typer(feedback_app, name="feedback")
app.command()(train)
app.command()(experiments)
app.command()(worker)


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to bind.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind.", show_default="8080")] = None,
    models: Models = None,
    policy_url: PolicyUrl = None,
    scoring_url: ScoringUrls = None,
    device: Annotated[str | None, typer.Option(help="Engine's device.", show_default="cpu")] = None,
    retrain_every: Annotated[
        int | None, typer.Option(help="Train a PRM anew after so many labels more.")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="console or json.", show_default="console")
    ] = None,
) -> None:
    """Serve step scores and searches over HTTP. Every setting is also a RUNG_… variable."""
    from server.serve import serve as run

    settings = settings_of(
        host=host,
        port=port,
        models=models,
        policy_url=policy_url,
        scoring_urls=scoring_urls_of(scoring_url),
        device=device,
        retrain_every=retrain_every,
        log_format=log_format,
    )
    sys.exit(run(settings))


@app.command()
def score(
    file: Annotated[
        Path,
        typer.Argument(
            help='JSONL: {"problem": …, "steps": […]} or "response" per line; - for stdin.'
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="PRM to score with.", show_default="the only one")
    ] = None,
    models: Models = None,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Score every step of every line of a file."""
    from server.commands import score_file

    run_command(score_file(file, connection_of(models, url, api_key), model=model, as_json=as_json))


@app.command()
def search(
    problem: Annotated[str, typer.Option(help="The question.")],
    policy: Annotated[
        str | None, typer.Option(help="Model that writes.", show_default="the only one")
    ] = None,
    prm: Annotated[
        str | None,
        typer.Option(help="PRM that judges; 'none' for none.", show_default="the only one"),
    ] = None,
    strategy: Annotated[str, typer.Option(help="best_of_n or beam.")] = "best_of_n",
    n: Annotated[int, typer.Option(help="Candidates or beams.")] = 16,
    selection: Annotated[
        str, typer.Option(help="best_of_n: prm, weighted, majority or first.")
    ] = "prm",
    width: Annotated[int, typer.Option(help="beam: continuations of a survivor.")] = 4,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 0.8,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of a candidate.")] = 512,
    seed: Annotated[int | None, typer.Option(help="Makes the search repeatable.")] = None,
    answers: Annotated[
        str | None,
        typer.Option(
            help="How answers are stated, compared and tested: math, text, or the request's "
            "`answers` object as JSON, or @FILE that holds it.",
            show_default="math",
        ),
    ] = None,
    models: Models = None,
    policy_url: PolicyUrl = None,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Search for the best answer to one problem."""
    from server.commands import search_problem

    settings: dict[str, Any] = {"type": strategy, "n": n}
    settings |= {"width": width} if strategy == "beam" else {"selection": selection}
    request = {
        "problem": problem,
        "strategy": settings,
        "sampling": {"temperature": temperature, "max_tokens": max_tokens, "seed": seed},
    }
    if answers is not None:
        request["answers"] = answers_of(answers)
    connection = connection_of(models, url, api_key, policy_url)
    run_command(search_problem(request, connection, policy=policy, prm=prm, as_json=as_json))


@models_app.command("list")
def list_models(models: Models = None, as_json: Json = False) -> None:
    """Verify the folder and list the live versions in it."""
    from server.commands import print_versions

    print_versions(settings_of(models=models).models, as_json=as_json)


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Who it is for.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="score, search, train or admin; repeatable.", show_default="score and search"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once."""
    from server.key_file import SCOPES, KeyFile

    scopes = [known for known in SCOPES if known in (scope or ["score", "search"])]
    if unknown := set(scope or []) - set(SCOPES):
        fail(f"--scope {unknown.pop()!r} is not one of {', '.join(SCOPES)}", code=2)
    with told_errors():
        key = KeyFile(settings_of().keys_file).create(name, scopes)
    typer.echo(json.dumps({"key": key, "name": name, "scopes": scopes}) if as_json else key)


@keys_app.command("list")
def list_keys(as_json: Json = False) -> None:
    """List the keys: id, name, scopes; never the key."""
    from server.key_file import KeyFile

    with told_errors():
        records = KeyFile(settings_of().keys_file).list()
    for record in records:
        shown = record.model_dump(exclude={"sha256"})
        line = f"{record.id}  {record.name}  {', '.join(record.scopes)}"
        typer.echo(json.dumps(shown) if as_json else line)


@keys_app.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="Id from `rung keys list`.")]) -> None:
    """Forget a key; a running server notices at once."""
    from server.key_file import KeyFile

    with told_errors():
        is_known = KeyFile(settings_of().keys_file).revoke(key_id)
    if not is_known:
        fail(f"no key with id {key_id}; see `rung keys list`", code=1)


def main() -> None:
    """Entry point of the `rung` command."""
    # Before anything imports torch here: see prm/engine/process.py.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()
