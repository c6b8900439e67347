"""What `rung eval` does: read labels, get scores, fit or measure, print."""

import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import Progress

from prm.aggregation import PlainAggregation
from prm.calibration import Calibration, PolicyName
from prm.calibration_files import save
from prm.errors import InvalidInput, UnknownModel
from prm.evaluation.calibrate import Fit, Method, calibrate, measure
from prm.evaluation.fits import Graded
from prm.evaluation.labelled import Scored, read_labelled
from prm.evaluation.picture import check_picture, draw_reliability
from prm.evaluation.ranking import compare_aggregations
from prm.manifest import ModelRef, ModelVersion, PrmManifest
from prm.registry import Registry
from server.batches import scored_in_batches
from server.commands import only_model, progress_bar
from server.connection import Connection, prm_of
from server.eval_report import panels_of, print_fit, print_held_out, print_json, print_rankings


@dataclass(frozen=True, kw_only=True)
class RankingOptions:
    """`rung eval aggregations`."""

    file: Path
    model: str | None
    recorded: bool
    as_json: bool
    folds: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class ReliabilityOptions:
    """`rung eval reliability`."""

    file: Path
    model: str | None
    recorded: bool
    plot: Path | None
    as_json: bool
    policy: str | None


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(ReliabilityOptions):
    """`rung eval calibrate`."""

    method: Method
    holdout: float
    seed: int
    dry_run: bool

    @property
    def command(self) -> str:
        """The command that would do it again; where the scores came from is left out."""
        options = {
            "--model": self.model, "--policy": self.policy, "--method": self.method,
            "--holdout": self.holdout, "--seed": self.seed,
        }  # fmt: skip
        given = [part for name, value in options.items() if value for part in (name, str(value))]
        words = ["rung", "eval", "calibrate", str(self.file), *given]
        return shlex.join([*words, "--recorded"] if self.recorded else words)


async def calibrate_file(options: CalibrateOptions, connection: Connection) -> None:
    """Fit on a part of the problems, measure on the rest, print, and write the record."""
    policy = None if options.dry_run else _policy_name(options.policy)
    if options.plot:
        check_picture(options.plot)
    console = Console()
    with progress_bar(console, options.as_json) as progress:
        responses, pinned = await _scored(options, connection, progress)
        # Looked up before the fit: a record that has no place to go should not take its time.
        version = None
        if not options.dry_run or (pinned and not connection.url):
            version = _local(connection, pinned, options.model)
        progress.add_task("fitting", total=None)
        fit = calibrate(
            responses,
            method=options.method,
            holdout=options.holdout,
            seed=options.seed,
            aggregation=_aggregation_of(version),
        )
    path = None
    if version is not None and policy is not None:
        path = save(version, _record(fit, version, policy, options.command))
    if options.plot:
        draw_reliability(panels_of(fit.held_out), options.plot)
    if options.as_json:
        print_json(path=str(path) if path else None, fit=fit)
    else:
        print_fit(console, fit, path)


async def measure_file(options: ReliabilityOptions, connection: Connection) -> None:
    """Measure the calibration that the model folder holds on this file."""
    if options.plot:
        check_picture(options.plot)
    console = Console()
    with progress_bar(console, options.as_json) as progress:
        responses, pinned = await _scored(options, connection, progress)
        version = _local(connection, pinned, options.model)
        calibration = _calibration(connection, version, options.policy)
        found = measure(
            responses, calibration.steps, calibration.response, _aggregation_of(version)
        )
    if found.steps is None and found.responses is None:
        raise InvalidInput(
            f"{options.file}: no labels of what the calibration for {calibration.policy!r} tells"
        )
    if options.plot:
        draw_reliability(panels_of(found), options.plot)
    if options.as_json:
        print_json(policy=calibration.policy, measured=found)
    else:
        print_held_out(console, found, title=f"{version.key}, policy {calibration.policy}")


async def rank_file(options: RankingOptions, connection: Connection) -> None:
    """Compare aggregations on the responses that are labelled `correct`."""
    console = Console()
    with progress_bar(console, options.as_json) as progress:
        responses, _ = await _scored(options, connection, progress)
        progress.add_task("cross-validating", total=None)
        graded = [
            Graded(problem=r.problem, scores=r.scores, is_correct=r.is_correct)
            for r in responses
            if r.is_correct is not None
        ]
        rankings = compare_aggregations(graded, folds=options.folds, seed=options.seed)
    if options.as_json:
        print_json(responses=len(graded), rankings=rankings)
    else:
        print_rankings(console, rankings, graded)


async def _scored(
    options: RankingOptions | ReliabilityOptions, connection: Connection, progress: Progress
) -> tuple[list[Scored], ModelRef | None]:
    """The responses with their scores, and the version that they are of, where it is known."""
    labelled = read_labelled(options.file)
    if options.recorded:
        return [line.recorded() for line in labelled], None
    items = [line.item() for line in labelled]
    title = "scoring" if connection.url else "starting the engine"
    task = progress.add_task(title, total=len(items))
    async with connection.open() as answers:
        pinned = await answers.prm(options.model or await only_model(answers, "prm"))
        progress.update(task, description=f"scoring by {pinned.key}")
        scored: list[Scored] = []
        async for batch in scored_in_batches(answers, pinned.key, labelled, items):
            scored += batch
            progress.update(task, completed=len(scored))
    return scored, pinned


def _local(connection: Connection, pinned: ModelRef | None, model: str | None) -> ModelVersion:
    """The version in the model folder beside which the calibration lies."""
    registry = Registry.open(connection.settings.models)
    if pinned is None:
        if model is None:
            raise InvalidInput("--recorded: name the PRM that the scores are of with --model")
        return prm_of(registry, model)
    try:
        version = prm_of(registry, pinned.key)
    except UnknownModel as error:
        raise InvalidInput(f"{error}; {_folder_remedy(connection)}") from error
    if version.ref != pinned:
        raise InvalidInput(
            f"{pinned.key} has the weights {pinned.weights_sha256[:12]}… at the server and "
            f"{version.weights_sha256[:12]}… here; {_folder_remedy(connection)}"
        )
    return version


def _folder_remedy(connection: Connection) -> str:
    return (
        f"calibrations lie in the model folder, here {connection.settings.models}: name the "
        "server's with --models, or only measure with `rung eval calibrate --dry-run`"
    )


def _calibration(connection: Connection, version: ModelVersion, policy: str | None) -> Calibration:
    known = Registry.open(connection.settings.models).calibrations(version).by_policy
    if policy is None and len(known) == 1:
        return next(iter(known.values()))
    if policy is None or policy not in known:
        raise InvalidInput(
            f"{version.key} has calibrations for: {', '.join(known) or 'none'}; name one with "
            "--policy, or fit one with `rung eval calibrate`"
        )
    return known[policy]


def _policy_name(policy: str | None) -> str:
    if policy is None:
        raise InvalidInput("--policy: name who wrote the steps, or measure only with --dry-run")
    try:
        return TypeAdapter(PolicyName).validate_python(policy)
    except ValidationError as error:
        raise InvalidInput(
            f"--policy {policy!r}: at most 80 letters, digits and . _ / : @ + -, a letter or a "
            "digit first"
        ) from error


def _aggregation_of(version: ModelVersion | None) -> PlainAggregation:
    if version is None:
        return "min"
    assert isinstance(version.manifest, PrmManifest)
    return version.manifest.aggregation


def _record(fit: Fit, version: ModelVersion, policy: str, command: str) -> Calibration:
    return Calibration(
        prm=version.ref,
        policy=policy,
        created=int(time.time()),
        command=command,
        steps=fit.steps,
        response=fit.response,
        fitted=fit.fitted,
        held_out=fit.held_out,
    )
