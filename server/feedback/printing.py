"""The report on feedback, for a person."""

from rich.console import Console
from rich.table import Table

from prm.errors import InvalidInput
from prm.manifest import PrmManifest
from prm.registry import Registry
from server.connection import prm_of
from server.feedback.report import report_of
from server.feedback.store import FeedbackStore
from server.schemas.feedback import FeedbackReport
from server.settings import Settings

_SHOWN = 10


async def local_report(settings: Settings, model: str | None) -> FeedbackReport:
    """Of the feedback in this folder of runs. Raises UnknownModel, InvalidInput, Unavailable."""
    registry = Registry.open(settings.models)
    if model is None:
        names = sorted(
            {v.manifest.name for v in registry.live() if isinstance(v.manifest, PrmManifest)}
        )
        if len(names) != 1:
            raise InvalidInput(f"--model: name a PRM: {', '.join(names) or 'there is none'}")
        (model,) = names
    else:
        model = prm_of(registry, model).manifest.name
    if not (settings.runs / "feedback.db").exists():
        raise InvalidInput(f"there is no feedback in {settings.runs}; set RUNG_RUNS, or give --url")
    store = FeedbackStore(settings.runs)
    try:
        return await report_of(store, model, key_share=settings.feedback_key_share)
    finally:
        await store.aclose()


def print_report(report: FeedbackReport, *, as_json: bool) -> None:
    """A table of keys, and the newest disputed responses."""
    if as_json:
        print(report.model_dump_json())
        return
    print(
        f"{report.model}: {report.labels} labels of {report.responses} responses, "
        f"{report.num_disputed} of them disputed"
    )
    table = Table("key", "labels", "against others", "against the PRM", "trust", "share")
    for key in report.keys:
        table.add_row(
            key.key_id,
            str(key.labels),
            _of(key.contradictions, key.contested, key.contradiction_rate),
            _of(key.prm_contradictions, key.judged, key.prm_contradiction_rate),
            f"{key.trust:.2f}",
            f"{key.share:.1%}",
        )
    Console().print(table)
    for disputed in report.disputed[:_SHOWN]:
        said = ", ".join(f"{each.key_id}: {_word(each.correct)}" for each in disputed.labels)
        print(f"{_short(disputed.problem)} → {_short(disputed.response)}: {said}")


def _of(count: int, among: int, rate: float | None) -> str:
    return "-" if rate is None else f"{count} of {among} ({rate:.0%})"


def _word(correct: bool) -> str:
    return "right" if correct else "wrong"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:59]}…"
