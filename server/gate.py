"""`rung models gate`: a version and the live one on the same responses, and the verdict."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from prm.errors import Conflict
from prm.evaluation.gate import GateReport, GateSettings, Judged, judge
from prm.evaluation.labelled import Labelled, Scored, read_labelled
from prm.manifest import PrmManifest
from prm.registry import (
    Registry,
    Trial,
    Verdict,
    check_may_serve,
    promote,
    reject,
    write_verdict,
)
from server.announcements import announce
from server.batches import scored_in_batches
from server.commands import progress_bar
from server.connection import Embedded, prm_of
from server.services import running_services
from server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """What is asked of the gate. `decides`: the verdict is kept, and what passes goes live."""

    name: str
    version: str
    file: Path
    settings: GateSettings
    decides: bool
    as_json: bool


async def gate_version(options: GateOptions, settings: Settings) -> None:
    """Score the file's responses by both versions, compare, print; then promote or reject.

    Ends the process with 1 where the version does not pass. Raises UnknownModel, InvalidInput,
    ModelFolderError, Unavailable, and Conflict for a version that is live already.
    """
    check_may_serve(settings.models, options.name, options.version)
    held_out = read_labelled(options.file)
    asked = Comparison(
        name=options.name, version=options.version, held_out=held_out, gate=options.settings
    )
    with progress_bar(Console(), options.as_json) as progress:
        report = await compare(asked, settings, progress)
    if options.decides:
        decide(settings, options.name, options.version, report)
    _print(options, report)
    if not report.passed:
        sys.exit(1)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A version that may become live, and what it is compared with the live one on.

    `recent` are responses without labels, which both score, too.
    """

    name: str
    version: str
    held_out: Sequence[Labelled]
    recent: Sequence[Labelled] = ()
    gate: GateSettings


async def compare(asked: Comparison, settings: Settings, progress: Progress) -> GateReport:
    """Both versions' scores of the same responses, by an engine of its own, and what they say.

    Raises UnknownModel, InvalidInput, ModelFolderError, Unavailable, and Conflict.
    """
    registry = Registry.open(settings.models)
    live = prm_of(registry, asked.name)
    pointer = registry.pointers[asked.name]
    if pointer.live == asked.version:
        raise Conflict(f"{asked.name}@{asked.version} is live already; there is nothing to ask")
    # Of the folder, these two and what they are read with, by an engine here.
    settings = settings.model_copy(update={"scoring_urls": {}, "policy_url": None})
    alone = pointer.model_copy(
        update={"canary": None, "shadow": Trial(version=asked.version, fraction=1)}
    )
    registry = registry.with_pointers({asked.name: alone})
    new = prm_of(registry, f"{asked.name}@{asked.version}")
    assert isinstance(live.manifest, PrmManifest)
    assert isinstance(new.manifest, PrmManifest)
    # A line that has no text is told before the engine is started.
    labelled = [*asked.held_out, *asked.recent]
    items = [line.item() for line in labelled]
    task = progress.add_task("starting the engine", total=2 * len(items))
    judged = []
    async with running_services(settings, registry) as services:
        for manifest in (live.manifest, new.manifest):
            progress.update(task, description=f"scoring by {manifest.key}")
            scored: list[Scored] = []
            async for batch in scored_in_batches(Embedded(services), manifest.key, labelled, items):
                scored += batch
                progress.advance(task, len(batch))
            judged.append(
                Judged(
                    responses=tuple(scored[: len(asked.held_out)]),
                    recent=tuple(scored[len(asked.held_out) :]),
                    aggregation=manifest.aggregation,
                    threshold=manifest.threshold,
                )
            )
    before, after = judged
    return judge(before, after, asked.gate)


def decide(
    settings: Settings, name: str, version: str, report: GateReport, *, over: str | None = None
) -> None:
    """Keep the verdict; what has passed goes live, and what has not never will.

    Raises Conflict where another version than `over`, if that is given, is live by now.
    """
    verdict = Verdict(
        version=version,
        passed=report.passed,
        reason="; ".join(report.reasons) or None,
        report=report.model_dump(mode="json"),
    )
    if report.passed:
        write_verdict(settings.models, name, verdict)
        promote(settings.models, name, version, over=over)
        announce(settings.redis_url, name)
    else:
        reject(settings.models, name, verdict)


def _print(options: GateOptions, report: GateReport) -> None:
    if options.as_json:
        print(json.dumps(report.model_dump(mode="json") | {"passed": report.passed}))
        return
    print(f"{report.responses} responses to {report.problems} problems")
    if report.live is not None and report.new is not None and report.difference is not None:
        for name, side in (("live", report.live), (options.version, report.new)):
            figure = side.figure
            print(
                f"{name:>12}  {report.metric} {figure.value:.3f} "
                f"({figure.low:.3f} to {figure.high:.3f})  mean score {side.mean_score:.3f}"
            )
        gap = report.difference
        print(f"{'difference':>12}  {gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})")
    for reason in report.reasons:
        print(f"rejected: {reason}")
    if report.passed:
        print("passed" + (f": {options.name}@{options.version} is live" if options.decides else ""))
