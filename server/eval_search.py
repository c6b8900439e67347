"""What `rung eval search` does: every strategy over labelled problems, then figures of it."""

import json
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import JsonValue, ValidationError
from rich.console import Console

from prm.errors import InvalidInput
from prm.manifest import ModelVersion
from prm.registry import Registry
from prm.validation import first_problem
from search import records
from search.curves import CurvePoint, Curves
from search.evaluation.arms import Arm, with_selections
from search.evaluation.figures import Report, measure
from search.evaluation.kept import KeptOutcomes, digest_of
from search.evaluation.page import check_page, write_figures
from search.evaluation.picture import draw_accuracy
from search.evaluation.problems import LabelledProblem, read_problems
from search.evaluation.runs import ArmRun, Search, run_arms
from search.run import Strategy, run_search
from search.selection import Selection
from search.types import SearchResult
from server.commands import check_outputs, progress_bar
from server.connection import prm_of
from server.eval_search_report import print_report
from server.schemas.search import SearchRequest
from server.services import Services, running_services
from server.settings import Settings
from server.short_forms import forms, strategy_from, strategy_of

# Votes and best-of-n share their candidates, and cost no more together than one of them.
DEFAULT_STRATEGIES = (
    "first-1",
    *(f"{form}-{n}" for n in (4, 16, 64) for form in ("majority", "weighted", "best-of")),
    *(f"{form}-{n}x4" for n in (4, 16) for form in ("beam", "dvts", "lookahead")),
    *(f"{form}-{n}" for n in (4, 16) for form in ("rebase", "particle-filter")),
    *(f"speculative-rejection-{n}" for n in (4, 16)),
    "mcts-4x4",
    *(f"adaptive-{n}" for n in (16, 64)),
)


@dataclass(frozen=True, kw_only=True)
class SearchEvalOptions:
    """`rung eval search`."""

    file: Path
    policy: str
    prm: str | None
    strategies: str | None
    limit: int | None
    seed: int
    temperature: float
    max_tokens: int
    concurrency: int
    json_file: Path | None
    picture: Path | None
    selections: str | None
    outcomes: Path | None
    docs: Path | None
    write_curves: bool
    command: str


async def search_file(options: SearchEvalOptions, settings: Settings) -> None:
    """Run all, and report: also what is through when the rest is broken off."""
    check_outputs(options.json_file, options.picture)
    if options.outcomes and not options.outcomes.absolute().parent.is_dir():
        raise InvalidInput(f"--outcomes {options.outcomes}: there is no such folder")
    if options.docs:
        check_page(options.docs)
    arms = read_arms(options.strategies)
    if options.selections is not None:
        arms = with_selections(arms, read_selections(options.selections))
    problems = read_problems(options.file, options.limit)
    registry = Registry.open(settings.models)
    version = prm_of(registry, options.prm) if options.prm else None
    _check(arms, version, options)
    kept = None
    if options.outcomes:
        kept = KeptOutcomes(options.outcomes, _about(options, problems, registry, version))
    runs = [run for arm in arms if kept and (run := kept.of(arm))]
    known = [run.arm for run in runs]

    def take(run: ArmRun) -> None:
        runs.append(run)
        if kept:
            kept.add(run)

    try:
        if left := [arm for arm in arms if arm not in known]:
            await _run(left, problems, options, settings, registry, take)
    finally:
        if runs:
            runs.sort(key=lambda run: arms.index(run.arm))
            _report(runs, version, options, is_complete=len(runs) == len(arms))


def read_arms(text: str | None) -> list[Arm]:
    """The arms of a file or of short forms with commas; None is the usual ones.

    A file holds a JSON list of settings as in a search request, or of short forms. Raises
    InvalidInput naming what is no strategy.
    """
    given: list[Any]
    if text is None:
        given = list(DEFAULT_STRATEGIES)
    elif _is_file(text):
        given = _listed(Path(text))
    else:
        given = [form.strip() for form in text.split(",")]
    arms: list[Arm] = []
    for each in given:
        arm = Arm(strategy=_strategy(each))
        if arm not in arms:
            arms.append(arm)
    return arms


def read_selections(text: str) -> list[Selection]:
    """Those named with commas. Raises InvalidInput naming what is no selection."""
    names: tuple[Selection, ...] = get_args(Selection)
    found = []
    for given in (part.strip() for part in text.split(",")):
        name = next((name for name in names if name == given), None)
        if name is None:
            raise InvalidInput(
                f"--selections: {given[:100]!r} is no selection; there is {', '.join(names)}"
            )
        found.append(name)
    return found


def _about(
    options: SearchEvalOptions,
    problems: list[LabelledProblem],
    registry: Registry,
    version: ModelVersion | None,
) -> dict[str, JsonValue]:
    """What outcomes hang on besides the strategy."""
    policy = registry.get(options.policy)
    return {
        "policy": policy.ref.model_dump() if policy else options.policy,
        "prm": version.ref.model_dump() if version else None,
        "problems": digest_of(problems),
        "sampling": {
            "temperature": options.temperature,
            "max_tokens": options.max_tokens,
            "seed": options.seed,
        },
    }


async def _run(
    arms: list[Arm],
    problems: list[LabelledProblem],
    options: SearchEvalOptions,
    settings: Settings,
    registry: Registry,
    take: Callable[[ArmRun], None],
) -> None:
    with progress_bar(Console(), as_json=False) as progress:
        task = progress.add_task("starting the engine", total=None)
        async with running_services(settings, registry) as services:
            progress.update(task, description="searching", total=1.0)

            def show(done: float, doing: str) -> None:
                progress.update(task, completed=done, description=doing)

            await run_arms(
                arms,
                problems,
                _search(services, options),
                services.answers,
                seed=options.seed,
                concurrency=options.concurrency,
                on_progress=show,
                on_run=take,
            )


def _search(services: Services, options: SearchEvalOptions) -> Search:
    async def search(problem: LabelledProblem, strategy: Strategy, seed: int) -> SearchResult:
        sampling = {
            "temperature": options.temperature,
            "max_tokens": options.max_tokens,
            "seed": seed,
        }
        try:
            request = SearchRequest.model_validate(
                problem.question
                | {"policy": options.policy, "prm": options.prm, "strategy": strategy}
                | {"sampling": sampling}
            )
        except ValidationError as error:
            raise InvalidInput(first_problem(error)) from error
        prepared = await services.searches.prepare(request)
        async with aclosing(run_search(prepared.request.strategy, prepared.run)) as events:
            async for event in events:
                if isinstance(event, SearchResult):
                    return event
        raise AssertionError("a search ends with its result")

    return search


def _report(
    runs: list[ArmRun],
    version: ModelVersion | None,
    options: SearchEvalOptions,
    *,
    is_complete: bool,
) -> None:
    report = measure(runs, has_prm=version is not None)
    console = Console()
    print_report(console, report)
    if options.json_file:
        about = {
            "command": options.command,
            "policy": options.policy,
            "prm": version.key if version else None,
            "is_complete": is_complete,
        }
        text = json.dumps(about | report.model_dump(), indent=1) + "\n"
        options.json_file.write_text(text, encoding="utf-8")
    if options.picture:
        draw_accuracy(report, options.picture)
    if options.docs:
        write_figures(options.docs, report, options.command)
    if not is_complete:
        console.print("broken off: the strategies above are complete, the others are left out")
    elif options.write_curves:
        assert version is not None, "checked before the run"
        path = records.save(version, curves_of(report, version, options))
        console.print(f"written: {path}", soft_wrap=True)


def curves_of(report: Report, version: ModelVersion, options: SearchEvalOptions) -> Curves:
    """What `auto` goes by, without itself."""
    points = [
        CurvePoint(
            strategy=point.strategy,
            uses_prm=point.uses_prm,
            mean_tokens=point.mean_tokens.value,
            accuracy=point.accuracy,
            gain=point.gain,
        )
        for point in report.points
        if point.strategy["type"] != "auto"
    ]
    return Curves(
        prm=version.ref,
        policy=options.policy,
        created=int(time.time()),
        command=options.command,
        problems=report.problems,
        points=tuple(points),
    )


def _check(arms: list[Arm], version: ModelVersion | None, options: SearchEvalOptions) -> None:
    """What would fail only after minutes of work, or halfway through it."""
    if version is None:
        if needy := [arm.label for arm in arms if arm.strategy.needs_prm]:
            raise InvalidInput(f"--prm none: {', '.join(needy)} need a PRM; leave them out")
        if options.write_curves:
            raise InvalidInput("--write-curves: curves are of a policy and a PRM; name one")
    if options.write_curves and all(arm.type == "auto" for arm in arms):
        raise InvalidInput("--write-curves: auto goes by the curves of other strategies")


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # longer than any file's name
        return False


def _listed(path: Path) -> list[Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"--strategies {path}: not JSON: {error}") from error
    if not isinstance(found, list) or not found:
        raise InvalidInput(f"--strategies {path}: not a JSON list of strategies")
    return found


def _strategy(given: Any) -> Any:
    if isinstance(given, dict):
        return strategy_from(given, json.dumps(given), param="--strategies")
    found = strategy_of(str(given), param="--strategies")
    if found is None:
        raise InvalidInput(
            f"--strategies: {str(given)[:100]!r} is neither a file nor a strategy; there is "
            f"{forms()}"
        )
    return found
