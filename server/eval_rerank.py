"""What `rung eval rerank` does: read recorded candidates, measure every selection, show, keep."""

import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from prm.calibration import PolicyName
from prm.errors import InvalidInput
from prm.evaluation.reliability import Interval
from prm.manifest import ModelVersion
from prm.registry import Registry
from search import records
from search.reranking.fits import fit_selector
from search.reranking.measure import Reranking, measure, steps_of, thresholds_for
from search.reranking.picture import draw_reranking
from search.reranking.pool import Pool, read_pool
from search.selection import SelectionRecord
from server.commands import check_outputs, progress_bar
from server.connection import prm_of
from server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class RerankOptions:
    """`rung eval rerank`."""

    file: Path
    folds: int
    orders: int
    wave: int
    budget: float
    seed: int
    json_file: Path | None
    picture: Path | None
    model: str | None
    policy: str | None
    command: str


async def rerank_file(options: RerankOptions, settings: Settings) -> None:
    """Measure, show, and keep what was fitted to all problems where a PRM is named."""
    check_outputs(options.json_file, options.picture)
    policy = _policy(options)
    # Looked up before the fit: a record that has no place to go should not take its time.
    version = None
    if options.model is not None:
        version = prm_of(Registry.open(settings.models), options.model)
    pool = read_pool(options.file)
    console = Console()
    with progress_bar(console, as_json=False) as progress:
        task = progress.add_task("cross-validating", total=steps_of(pool, options.folds))
        found = measure(
            pool,
            folds=options.folds,
            orders=options.orders,
            wave=options.wave,
            budget=options.budget,
            seed=options.seed,
            report=lambda: progress.advance(task),
        )
        record = None
        if version is not None and policy is not None:
            record = _record(options, pool, found, version, policy)
    if options.json_file:
        options.json_file.write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if options.picture:
        draw_reranking(found, options.picture)
    print_reranking(console, found)
    if version is not None and record is not None:
        console.print(f"written: {records.save(version, record)}", soft_wrap=True)


def print_reranking(console: Console, found: Reranking) -> None:
    """A line per selection, and per way of sampling in waves."""
    points = found.curves[0].points
    console.print(
        f"{found.problems} problems, {found.candidates} candidates, {points[-1].mean_cost:.0f} "
        f"{found.unit} a problem"
    )
    order = f"{found.orders} random orders" if found.orders else "the recorded order"
    widths = [str(point.candidates) for point in points]
    table = Table(f"% right, {order}", *widths, "all, as recorded", "minus majority")
    for curve in found.curves:
        middle = [f"{100 * point.accuracy.value:.1f}" for point in curve.points]
        table.add_row(curve.label, *middle, _percent(curve.recorded), _percent(curve.gain, "+"))
    console.print(table)
    gained = _percent(found.calibrated_minus_weighted_by_last, "+")
    console.print(f"calibrated minus weighted by last, all candidates: {gained}")
    table = Table("adaptive", "order", "% right", "% of the cost", "candidates", "minus majority")
    for waves in found.adaptive:
        table.add_row(
            waves.label,
            waves.order,
            _percent(waves.accuracy),
            _percent(waves.cost),
            f"{waves.candidates:.1f}",
            _percent(waves.gain, "+"),
        )
    console.print(table)
    console.print("95 % intervals by a bootstrap over problems; what is fitted: cross-validated")


def _record(
    options: RerankOptions, pool: Pool, found: Reranking, version: ModelVersion, policy: str
) -> SelectionRecord:
    """What is kept is fitted to all problems; its figures are those of cross-validation."""
    calibrated, by_votes = thresholds_for(
        pool.problems,
        orders=options.orders,
        wave=options.wave,
        budget=options.budget,
        folds=options.folds,
        seed=options.seed,
    )
    measured = {curve.label: curve.recorded for curve in found.curves}
    return SelectionRecord(
        prm=version.ref,
        policy=policy,
        created=int(time.time()),
        command=options.command,
        selector=fit_selector(pool.problems, seed=options.seed),
        threshold=calibrated,
        threshold_votes=by_votes,
        wave=options.wave,
        budget=options.budget,
        problems=found.problems,
        candidates=found.candidates,
        accuracy={
            "majority": measured["majority"],
            "weighted": measured["weighted by last"],
            "calibrated": measured["calibrated"],
        },
    )


def _policy(options: RerankOptions) -> str | None:
    if (options.model is None) != (options.policy is None):
        raise InvalidInput("--model and --policy: give both to keep the fit, or neither")
    if options.policy is None:
        return None
    try:
        return TypeAdapter(PolicyName).validate_python(options.policy)
    except ValidationError as error:
        raise InvalidInput(
            f"--policy {options.policy!r}: at most 80 letters, digits and . _ / : @ + -, a letter "
            "or a digit first"
        ) from error


def _percent(figure: Interval, sign: str = "") -> str:
    low, high = 100 * figure.low, 100 * figure.high
    return f"{100 * figure.value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
