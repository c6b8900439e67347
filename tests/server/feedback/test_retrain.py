"""Labels become a job: once, also where two servers look and one dies; split, deduplicated."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from prm.evaluation.labelled import read_labelled
from prm.registry import Registry
from prm.types import Message
from server.feedback.retrain import MARK, REPORT, Retrainer
from server.feedback.snapshot import is_held_out, take_snapshot
from server.feedback.store import Request
from server.feedback.types import Answer, Label
from server.jobs.create import create_job
from server.jobs.feedback import retrainer_of
from server.jobs.records import JobRecord
from server.schemas.fine_tuning import JobRequest
from server.services import Services
from server.settings import Settings
from tests.factories import PRM, STEPS

pytestmark = pytest.mark.anyio
EVERY = 50


@pytest.fixture
async def services(tiny_models: Path, tmp_path: Path) -> AsyncIterator[Services]:
    """All of a server but its engine and its port."""
    settings = Settings(
        models=tiny_models, runs=tmp_path / "runs", retrain_every=EVERY, worker=False
    )
    services = Services(settings, Registry.open(tiny_models))
    yield services
    await services.close()


def label(number: int, *, key: str = "ann", correct: bool, times: int = 0) -> Label:
    problem = f"problem {number}"
    return Label(
        id=f"fb-{key}-{number}-{times}",
        created=1,
        key_id=key,
        model=PRM,
        version="1",
        source="score",
        source_id=None,
        answer=Answer(
            messages=(Message(role="user", content=problem),),
            response="\n".join(STEPS),
            steps=STEPS,
            prm_correct=True,
        ),
        correct=correct,
    )


async def give(services: Services, start: int, count: int) -> None:
    """So many labels, of which every third says wrong."""
    labels = [label(number, correct=number % 3 > 0) for number in range(start, start + count)]
    request = Request(key_id="ann", body="", per_day=10_000)
    await services.feedback.store.add(labels, request)


def jobs(services: Services) -> list[JobRecord]:
    return [services.jobs.record(job_id) for job_id in services.jobs.ids()]


async def test_a_job_is_made_of_n_labels_and_the_next_of_n_more(services: Services) -> None:
    retrainer = retrainer_of(services)
    await give(services, 0, EVERY - 1)
    await retrainer.look()
    assert jobs(services) == []
    await give(services, EVERY - 1, 1)
    await retrainer.look()
    (job,) = jobs(services)
    request = job.request
    assert (request.model, request.method.type) == (PRM, "prime_feedback")
    assert request.metadata == {MARK: f"{PRM}:{EVERY}", "labels": str(EVERY)}
    assert job.gate is not None
    files = [services.files.content(name or "") for name in _files(request)]
    assert sum(len(read_labelled(path)) for path in files) == EVERY
    report = json.loads((services.jobs.folder(job.id) / REPORT).read_text())
    assert report["labels"] == EVERY
    # It runs, and labels go on coming: never two at once.
    await give(services, EVERY, EVERY)
    await retrainer.look()
    assert len(jobs(services)) == 1
    # A failed job has had its labels, and the next one comes with those that it has not had.
    services.jobs.change(job.id, lambda state: state.model_copy(update={"status": "failed"}))
    await retrainer.look()
    await retrainer.look()
    assert len(jobs(services)) == 2
    newest = jobs(services)[0].request
    assert newest.metadata == {MARK: f"{PRM}:{2 * EVERY}", "labels": str(EVERY)}
    services.jobs.change(
        services.jobs.ids()[0], lambda state: state.model_copy(update={"status": "failed"})
    )
    for _ in range(3):
        await retrainer.look()
    assert len(jobs(services)) == 2


async def test_two_servers_that_look_at_once_make_one_job(services: Services) -> None:
    await give(services, 0, EVERY)
    await asyncio.gather(*(retrainer_of(services).look() for _ in range(4)))
    assert len(jobs(services)) == 1


async def test_a_job_whose_maker_died_behind_it_is_not_made_twice(services: Services) -> None:
    class Died(Exception):
        pass

    async def create_and_die(request: JobRequest) -> JobRecord:
        await create_job(services, request)
        raise Died

    await give(services, 0, EVERY)
    retrainer = Retrainer(
        services.feedback.store,
        services.jobs,
        services.files,
        services.serving,
        services.feedback_metrics,
        create_and_die,
        every=EVERY,
        hours=None,
        key_share=0.5,
    )
    with pytest.raises(Died):
        await retrainer.look()
    await retrainer.look()
    assert len(jobs(services)) == 1
    waiting = (await retrainer.trainings.waiting())[0]
    assert waiting.last is not None
    assert waiting.last.job_id == jobs(services)[0].id


async def test_labels_that_all_say_right_teach_nothing_and_are_told(
    services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    labels = [label(number, correct=True) for number in range(EVERY)]
    await services.feedback.store.add(labels, Request(key_id="ann", body="", per_day=10_000))
    retrainer = retrainer_of(services)
    for _ in range(3):
        await retrainer.look()
    assert jobs(services) == []
    assert caplog.text.count("0 are wrong") == 1


async def test_a_snapshot_has_each_response_once_and_each_problem_on_one_side(
    services: Services, tmp_path: Path
) -> None:
    store = services.feedback.store
    for key, wrong in (("ann", ()), ("ben", ()), ("eve", range(100))):
        labels = [label(n, key=key, correct=n not in wrong) for n in range(100)]
        await store.add(labels, Request(key_id=key, body="", per_day=1000))
    # Who says it ten times has one vote.
    again = [label(0, key="eve", correct=False, times=n + 1) for n in range(10)]
    await store.add(again, Request(key_id="eve", body="", per_day=1000))
    paths = tmp_path / "training.jsonl", tmp_path / "held_out.jsonl"
    snapshot = await take_snapshot(store, PRM, *paths, separator="\n", key_share=0.5)
    training, held_out = (read_labelled(path) for path in paths)
    rows = [*training, *held_out]
    assert len(rows) == 100
    assert all(row.response.correct is True for row in rows)
    assert all(row.response.weight < 1 for row in rows)
    assert {row.response.problem for row in training}.isdisjoint(
        row.response.problem for row in held_out
    )
    assert 8 <= len(held_out) <= 35
    assert (snapshot.training.right, snapshot.held_out.right) == (len(training), len(held_out))
    answers = [label(n, correct=True).answer for n in range(100)]
    wanted = {a.messages[0].content for a in answers if is_held_out(a.problem)}
    assert {row.response.problem for row in held_out} == wanted


def _files(request: JobRequest) -> tuple[str | None, str | None]:
    return request.training_file, request.validation_file
