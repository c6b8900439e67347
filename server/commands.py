"""What `rung score`, `rung search` and `rung models` do and print."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from prm.errors import InvalidInput, ModelFolderError
from prm.evaluation.picture import check_picture
from prm.families import FAMILIES
from prm.manifest import ModelVersion, PolicyManifest
from prm.registry import Registry
from server.batches import score_in_batches
from server.connection import Answers, Connection
from server.schemas.score import ItemOut
from server.schemas.search import SearchResponse


async def score_file(
    path: Path, connection: Connection, *, model: str | None, as_json: bool
) -> None:
    """Score a JSONL file: a line of JSON per item, or the steps with their scores beside them.

    Raises InvalidInput naming the line that is no item, or that cannot be scored.
    """
    items, places = _read_items(path)
    console = Console()
    with progress_bar(console, as_json) as progress:
        task = progress.add_task("starting the engine" if not connection.url else "scoring")
        async with connection.open() as answers:
            model = model or await only_model(answers, "prm")
            progress.update(task, description="scoring", total=len(items))
            request = {"model": model, "include": ["raw"]}
            done = 0
            async for response in score_in_batches(answers, request, items, places):
                for item in response.data:
                    item.index += done
                    if as_json:
                        print(item.model_dump_json(exclude_none=True))
                    else:
                        console.print(_item_table(item))
                done += len(response.data)
                progress.update(task, completed=done)
    if not as_json:
        console.print(f"items scored by {model}: {len(items)}")


async def search_problem(
    request: dict[str, Any],
    connection: Connection,
    *,
    policy: str | None,
    prm: str | None,
    as_json: bool,
) -> None:
    """Run one search and print the winner, the vote beside it and what it cost."""
    console = Console()
    with progress_bar(console, as_json) as progress:
        progress.add_task("searching", total=None)
        async with connection.open() as answers:
            request |= {
                "policy": policy or await only_model(answers, "policy"),
                "prm": None if prm == "none" else prm or await only_model(answers, "prm"),
            }
            response = await answers.search(request)
    if as_json:
        print(response.model_dump_json(exclude_none=True))
    else:
        _print_search(console, response)


def print_versions(root: Path, *, as_json: bool) -> None:
    """Verify a model folder and list what is live in it; exits with 2 when it is bad."""
    try:
        versions = Registry.open(root).live()
    except ModelFolderError as error:
        print(f"rung: {error}", file=sys.stderr)
        sys.exit(2)
    if as_json:
        for version in versions:
            print(version.manifest.model_dump_json(exclude={"files", "golden"}))
        return
    table = Table("model", "version", "kind", "family", "recipe", "context", "MB")
    for version in versions:
        size = sum(record.bytes for record in version.manifest.files.values())
        table.add_row(
            version.manifest.name,
            version.manifest.version,
            version.manifest.kind,
            *_how_read(version),
            str(version.context_limit),
            f"{size / 1e6:.1f}",
        )
    Console().print(table)


def _how_read(version: ModelVersion) -> tuple[str, str]:
    """Family and recipe of a PRM; dashes of a policy."""
    if isinstance(version.manifest, PolicyManifest):
        return "-", "-"
    family = FAMILIES[version.manifest.family]
    return family.name, family.recipe_of(version).label


def _read_items(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The items, and of each the file and line that it stands on."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read as UTF-8 text: {error}") from error
    items, places = [], []
    # Not `splitlines`: it also cuts at U+2028, which JSON leaves as it is.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            raise InvalidInput(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(item, dict):
            raise InvalidInput(f"{path}, line {number}: not a JSON object")
        items.append(item)
        places.append(f"{path}, line {number}")
    if not items:
        raise InvalidInput(f"{path}: holds no item")
    return items, places


async def only_model(answers: Answers, kind: str) -> str:
    """The model of this kind when there is just one. Raises InvalidInput naming the choice."""
    names = (await answers.names()).get(kind, [])
    if len(names) == 1:
        return names[0]
    option = "--policy" if kind == "policy" else "--model or --prm"
    raise InvalidInput(
        f"{len(names)} models of kind {kind} are served; choose one with {option}: {names}"
    )


@contextmanager
def progress_bar(console: Console, as_json: bool) -> Iterator[Progress]:
    """A bar on the terminal, below what is printed; nothing where a program reads along."""
    shown = console if console.is_terminal else Console(stderr=True)
    is_wanted = shown.is_terminal and not as_json
    with Progress(console=shown, disable=not is_wanted, transient=True) as progress:
        yield progress


def _item_table(item: ItemOut) -> Table:
    title = f"item {item.id or item.index}: score {item.score:.3f}"
    table = Table("step", "score", title=Text(title), title_justify="left")
    for step in item.steps:
        is_wrong = item.first_error is not None and step.index == item.first_error
        style = "bold red" if is_wrong else ""
        mark = "  ← first error" if is_wrong else ""
        table.add_row(Text(step.text, style=style), Text(f"{step.score:.3f}{mark}", style=style))
    return table


def _print_search(console: Console, response: SearchResponse) -> None:
    console.print(Text(response.text))
    console.print()
    votes = ", ".join(f"{vote.answer} ×{vote.count}" for vote in response.votes[:5])
    score = "none" if response.score is None else f"{response.score:.3f}"
    console.print(Text(f"answer {response.answer}   score {score}   votes {votes or 'none'}"))
    usage, timing = response.usage, response.timing_ms
    console.print(
        f"{response.strategy['type']}: {usage.generated_tokens} tokens written, "
        f"{usage.scored_tokens} scored, {response.rounds} round(s), {timing.total:.0f} ms, "
        f"stopped by {response.stopped_by}",
        soft_wrap=True,
    )


def check_outputs(json_file: Path | None, picture: Path | None) -> None:
    """Raises InvalidInput when `--json` or `--picture` could not be written, before any work."""
    if picture:
        check_picture(picture, "--picture")
    if json_file and not json_file.absolute().parent.is_dir():
        raise InvalidInput(f"--json {json_file}: there is no such folder")
