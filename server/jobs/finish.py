"""What a run has trained becomes versions, and the PRM is held against the live one.

python -m server.jobs.finish JOB_ID          with RUNG_RUNS and RUNG_MODELS

Killed anywhere and begun again it comes to the same: a version that is there is not published
twice, and a verdict that was given is not asked for again.
"""

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress

from prm.errors import Conflict, InvalidInput, RungError, Unavailable
from prm.evaluation.gate import GateReport, GateSettings
from prm.evaluation.labelled import Labelled, read_labelled, some_labelled
from prm.files import is_out_of_space, replace_durably
from prm.importing import Asked, ImportRequest, import_checkpoint
from prm.manifest import PrmManifest
from prm.registry import Verdict, promote, read_pointers, read_verdict, read_version
from prm.registry.names import STABLE
from server.announcements import announce
from server.gate import Comparison, compare, decide
from server.jobs.records import JobRecord, Publication
from server.jobs.store import RUN, JobStore
from server.serve import configure_logging
from server.settings import Settings
from training.exits import AWAY, FULL
from training.publishing import TOLERANCE
from training.served import GOLDEN, GOLDEN_PRM, HELD_OUT, separator_of, served_as
from training.spec import LabelledData

REPORT = "gate.json"
# Of a comparison, when another version went live meanwhile.
_TRIES = 3
logger = logging.getLogger(__name__)


def finish(store: JobStore, job_id: str, settings: Settings) -> None:
    """Publish the versions of a run that is done, ask the gate, and act on what it says.

    Raises InvalidInput, ModelFolderError, Unavailable, OSError.
    """
    record = store.record(job_id)
    for publication in record.publishes:
        if not (settings.models / publication.name / publication.version / STABLE).is_file():
            _publish(store, record, publication, settings)
    main = next((each for each in record.publishes if each.role == "prm"), record.publishes[0])
    store.change(
        job_id,
        lambda state: state.model_copy(update={"phase": "gate", "fine_tuned_model": main.key}),
    )
    if main.role != "prm" or record.gate is None:
        return
    if main.name not in read_pointers(settings.models):
        promote(settings.models, main.name, main.version)
        announce(settings.redis_url, main.name)
    live = read_pointers(settings.models)[main.name].live
    verdict = read_verdict(settings.models, main.name, main.version)
    if verdict is None and live == main.version:
        store.tell(job_id, f"{main.key} is live: nothing was, and there is nothing to compare with")
        return
    if verdict is None:
        verdict = _judged(store, record, main, record.gate, settings)
    elif verdict.passed and live != main.version:
        # Ended between the two. Who has gone back since then has said otherwise.
        _promote_again(main, settings)
    passed, reason = verdict.passed, verdict.reason
    told = f"passed the gate: {main.key} is live" if passed else f"rejected by the gate: {reason}"
    store.tell(job_id, told, "info" if passed else "warn", data={"passed": passed})
    name: Literal["passed", "rejected"] = "passed" if passed else "rejected"
    store.change(job_id, lambda state: state.model_copy(update={"verdict": name}))


def _judged(
    store: JobStore,
    record: JobRecord,
    main: Publication,
    gate: GateSettings,
    settings: Settings,
) -> Verdict:
    """Ask the gate, keep its report, and do what it says.

    Raises Conflict where others go live faster than it can compare.
    """
    for tries in reversed(range(_TRIES)):
        live = read_pointers(settings.models)[main.name].live
        report = asyncio.run(_compared(store, record, main, gate, settings))
        replace_durably(store.folder(record.id) / REPORT, report.model_dump_json(indent=1) + "\n")
        try:
            decide(settings, main.name, main.version, report, over=live)
            break
        except Conflict:
            if not tries:
                raise
    verdict = read_verdict(settings.models, main.name, main.version)
    assert verdict is not None
    return verdict


def _promote_again(main: Publication, settings: Settings) -> None:
    if main.version not in read_pointers(settings.models)[main.name].previous:
        promote(settings.models, main.name, main.version)
        announce(settings.redis_url, main.name)


def _publish(
    store: JobStore, record: JobRecord, publication: Publication, settings: Settings
) -> None:
    """One version, with golden scores; nothing but the gate lets it answer."""
    request = _import_of(record, publication, store.folder(record.id) / RUN, settings)
    import_checkpoint(request, lambda what, done, total: None)
    store.tell(record.id, f"Published {publication.key}", data={"model": publication.key})


def _import_of(
    record: JobRecord, publication: Publication, run: Path, settings: Settings
) -> ImportRequest:
    is_prm = publication.role == "prm"
    golden = run / (GOLDEN_PRM if is_prm else GOLDEN)
    if not golden.is_file() or not golden.read_bytes().strip():
        raise InvalidInput(
            f"{publication.key} cannot be published: none of the run's responses has a step to "
            "compute golden scores of; train longer, or on other problems"
        )
    asked, reference = Asked(), None
    served = served_as(record.training) if is_prm else None
    if served is not None:
        recipe = dict(served.settings)
        asked = Asked(family=served.family, recipe=recipe.pop("name", None), settings=recipe)
        if served.family == "implicit":
            reference = publication.reference or "none"
    like = _manifest_of(publication.like, settings.models)
    algorithm = record.training.algorithm.model_dump(mode="json")
    return ImportRequest(
        folder=run / publication.role,
        name=publication.name,
        version=publication.version,
        root=settings.models,
        asked=asked,
        reference=reference,
        step_separator=like.step_separator if like else separator_of(record.training),
        aggregation=like.aggregation if like else None,
        threshold=like.threshold if like else None,
        is_policy=not is_prm,
        training={"job": record.id, "base": record.base, "algorithm": algorithm},
        golden=golden,
        tolerance=TOLERANCE,
        live=False,
        device=settings.device,
        threads=settings.engine_options.num_threads,
    )


def _manifest_of(key: str | None, root: Path) -> PrmManifest | None:
    if key is None:
        return None
    name, _, version = key.partition("@")
    manifest = read_version(root / name / version).manifest
    assert isinstance(manifest, PrmManifest)
    return manifest


async def _compared(
    store: JobStore,
    record: JobRecord,
    publication: Publication,
    gate: GateSettings,
    settings: Settings,
) -> GateReport:
    asked = Comparison(
        name=publication.name,
        version=publication.version,
        held_out=_held_out(record, store.folder(record.id) / RUN),
        recent=_recent(settings.runs, publication.name),
        gate=gate,
    )
    with Progress(console=Console(quiet=True)) as progress:
        try:
            return await compare(asked, settings, progress)
        except InvalidInput as error:
            if error.param != "metric":
                raise
            # Labels that do not say which of the two is better let none pass.
            return GateReport(
                metric=gate.metric,
                problems=len({line.response.problem for line in asked.held_out}),
                responses=len(asked.held_out),
                reasons=(str(error),),
            )


def _held_out(record: JobRecord, run: Path) -> list[Labelled]:
    """Responses of the job's own held-out files, else those that the run wrote and graded."""
    data = record.training.data
    if isinstance(data, LabelledData) and data.held_out:
        return [labelled for file in data.held_out for labelled in read_labelled(file)]
    if not (run / HELD_OUT).is_file():
        raise InvalidInput(
            "there is nothing to compare the new version on: give a validation_file, or gate false",
            param="validation_file",
        )
    return read_labelled(run / HELD_OUT)


def _recent(runs: Path, name: str) -> list[Labelled]:
    """What servers have lately scored by any version of this PRM."""

    def is_of_name(fields: dict[str, Any]) -> bool:
        return str(fields.get("prm", "")).partition("@")[0] == name

    found: list[Labelled] = []
    for file in sorted((runs / "recent").glob("*.jsonl")):
        try:
            found += some_labelled(file, is_of_name)
        except InvalidInput as error:
            logger.warning("left out: %s", error)
    return found


def main() -> None:
    """Finish the job of the command line; an error is one line, and exit code 1, 69 or 74."""
    configure_logging("console")
    # What was begun is removed when somebody ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    settings = Settings()
    try:
        finish(JobStore(settings.runs), sys.argv[1], settings)
    except (RungError, OSError) as error:
        if is_out_of_space(error):
            sys.exit(FULL)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(AWAY if isinstance(error, Unavailable) else 1)


if __name__ == "__main__":
    main()
