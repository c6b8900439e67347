"""`/v1/fine_tuning/jobs` through OpenAI's own client."""

import fcntl
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest

from server.jobs.records import JobState
from server.jobs.store import LOCK, RUN
from tests.factories import POLICY, PRM
from tests.server.jobs.conftest import OUTCOMES, PROBLEMS, TASK, JobsServer, Upload


def create(client: openai.OpenAI, **given: Any) -> Any:
    """A job of a task, or of what is given; refused by nobody."""
    defaults = {"model": POLICY, "method": {"type": "rloo", "rloo": {"task": TASK}}}
    given = defaults | given
    # The client insists on a file, and a task has none.
    return client.fine_tuning.jobs.create(**{"training_file": None, **given})


def test_a_job_is_told_in_openais_shape(client: openai.OpenAI, upload: Upload) -> None:
    file, held_out = upload(PROBLEMS), upload(PROBLEMS[:2])
    job = client.fine_tuning.jobs.create(
        model=POLICY,
        training_file=file,
        validation_file=held_out,
        method={"type": "prime", "prime": {"beta": 0.1}},  # type: ignore[arg-type]
        hyperparameters={"n_epochs": 2, "batch_size": 3, "learning_rate_multiplier": 2.0},
        seed=7,
        suffix="may",
        metadata={"team": "sums"},
    )
    assert job.id.startswith("ftjob-")
    assert (job.object, job.status, job.model) == ("fine_tuning.job", "queued", f"{POLICY}@1")
    assert (job.training_file, job.validation_file) == (file, held_out)
    assert (job.seed, job.metadata, job.error) == (7, {"team": "sums"}, None)
    assert abs(job.created_at - time.time()) < 60
    assert job.fine_tuned_model is None
    more: Any = job
    assert more.paused is False
    version = f"may-{job.id[-8:]}"
    assert more.publishes == [f"{POLICY}@{version}", f"{POLICY}-prm@{version}"]
    told = more.method.prime
    assert told["beta"] == 0.1
    # Two passes of six problems, three a step; the rates of a tiny model, doubled.
    assert (told["steps"], told["rollouts"]["problems"]) == (4, 3)
    assert (told["optimizer"]["lr"], told["prm_optimizer"]["lr"]) == (6e-4, 1.8e-3)
    assert told["evaluation"]["problems"] == 2
    assert client.fine_tuning.jobs.retrieve(job.id) == job


def test_the_record_is_what_the_trainer_gets(
    client: openai.OpenAI, upload: Upload, jobs_server: JobsServer
) -> None:
    files = upload(OUTCOMES), upload(OUTCOMES[:2])
    job = create(
        client,
        model=PRM,
        training_file=files[0],
        validation_file=files[1],
        method={"type": "prime_feedback"},
    )
    record = jobs_server.store.record(job.id)
    models = record.training.policy, record.training.prm
    assert [str(path).rsplit("/", 2)[1:] for path in models] == [[POLICY, "1"], [PRM, "1"]]
    assert record.training.algorithm.model_dump(include={"type", "loss", "beta"}) == {
        "type": "implicit_prm", "loss": "ce", "beta": 0.5,
    }  # fmt: skip
    (published,) = record.publishes
    assert (published.name, published.reference) == (PRM, f"{POLICY}@1")
    assert published.like == f"{PRM}@1"
    assert record.gate is not None
    assert record.gate.metric == "best_of_n"  # two responses of one problem, one of them right
    assert jobs_server.store.waiting()[-1] == job.id


def test_jobs_are_listed_in_pages_and_by_metadata(client: openai.OpenAI) -> None:
    made = [create(client, metadata={"run": str(n % 2), "n": str(n)}).id for n in range(5)]
    listed = [job.id for job in client.fine_tuning.jobs.list(limit=2)]  # all pages of it
    assert listed[:5] == made[::-1]
    odd = client.fine_tuning.jobs.list(metadata={"run": "1", "n": "3"})
    assert [job.id for job in odd] == [made[3]]
    without = create(client).id
    null = client.fine_tuning.jobs.list(extra_query={"metadata": "null"}, limit=1)
    assert null.data[0].id == without
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.list(extra_query={"metadata": "run"})
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.list(after="ftjob-0")
    with pytest.raises(openai.UnprocessableEntityError):
        client.fine_tuning.jobs.list(limit=0)


def test_a_job_that_nobody_runs_is_paused_resumed_and_cancelled_at_once(
    client: openai.OpenAI, jobs_server: JobsServer
) -> None:
    jobs, job = client.fine_tuning.jobs, create(client)
    paused: Any = jobs.pause(job.id)
    assert (paused.status, paused.paused) == ("queued", True)
    assert job.id not in jobs_server.store.waiting()
    resumed: Any = jobs.resume(job.id)
    assert (resumed.status, resumed.paused) == ("queued", False)
    assert job.id in jobs_server.store.waiting()
    with pytest.raises(openai.ConflictError, match="only a job that was paused or has failed"):
        jobs.resume(job.id)
    cancelled = jobs.cancel(job.id)
    assert cancelled.status == "cancelled"
    assert cancelled.finished_at is not None
    for ask in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.ConflictError, match="cancelled"):
            ask(job.id)
    said = [event.message for event in jobs.list_events(job.id)]
    assert said == ["Cancelled", "Resumed", "Paused", f"Created fine-tuning job: {job.id}"]


def test_who_runs_a_job_is_asked(client: openai.OpenAI, jobs_server: JobsServer) -> None:
    jobs, store, job = client.fine_tuning.jobs, jobs_server.store, create(client)
    with open(store.folder(job.id) / LOCK, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        store.change(job.id, lambda state: state.model_copy(update={"status": "running"}))
        paused: Any = jobs.pause(job.id)
        assert (paused.status, paused.paused) == ("running", True)
        assert store.state(job.id).wanted == "pause"
        assert jobs.cancel(job.id).status == "running"
        assert store.state(job.id).wanted == "cancel"
        with pytest.raises(openai.ConflictError, match="is being cancelled already"):
            jobs.cancel(job.id)
    # And one whose worker died meanwhile waits for nobody.
    store.change(job.id, lambda state: state.model_copy(update={"wanted": "run"}))
    assert jobs.cancel(job.id).status == "cancelled"


def test_a_failed_job_says_why_and_may_go_on(
    client: openai.OpenAI, upload: Upload, jobs_server: JobsServer
) -> None:
    file = upload(PROBLEMS)
    job = create(client, training_file=file, method={"type": "grpo"})
    failed = JobState.model_validate(
        {"status": "failed", "finished_at": 1, "attempts": 5,
         "error": {"code": "disk_full", "message": "no space left"}}
    )  # fmt: skip
    jobs_server.store.change(job.id, lambda _: failed)
    told = client.fine_tuning.jobs.retrieve(job.id)
    assert told.error is not None
    assert (told.status, told.error.code, told.error.message) == (
        "failed", "disk_full", "no space left",
    )  # fmt: skip
    again = client.fine_tuning.jobs.resume(job.id)
    assert (again.status, again.error, again.finished_at) == ("queued", None, None)
    assert jobs_server.store.state(job.id).attempts == 0
    jobs_server.store.change(job.id, lambda _: failed)
    client.files.delete(file)
    with pytest.raises(openai.ConflictError, match=f"{file} was deleted"):
        client.fine_tuning.jobs.resume(job.id)


def test_events_are_paged_and_followed_to_the_end(
    client: openai.OpenAI, plain: httpx2.Client, jobs_server: JobsServer
) -> None:
    store, job = jobs_server.store, create(client)
    for step in range(1, 4):
        data = {"step": step, "loss": 1 / step}
        store.tell(job.id, f"step {step}", type="metrics", data=data)
    page = client.fine_tuning.jobs.list_events(job.id, limit=2)
    assert [event.message for event in page.data] == ["step 3", "step 2"]
    assert page.data[0].data == {"step": 3, "loss": 1 / 3}
    assert page.data[0].type == "metrics"
    assert [event.message for event in page] == [
        "step 3", "step 2", "step 1", f"Created fine-tuning job: {job.id}",
    ]  # fmt: skip

    path, query = (
        f"/v1/fine_tuning/jobs/{job.id}/events",
        {"stream": "true", "after": page.data[1].id},
    )
    with plain.stream("GET", path, params=query) as answer, ThreadPoolExecutor() as beside:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = (line[6:] for line in answer.iter_lines() if line.startswith("data: "))
        assert json.loads(next(lines))["message"] == "step 3"
        beside.submit(store.tell, job.id, "it goes on\u2028and on")
        assert json.loads(next(lines))["message"] == "it goes on\u2028and on"
        beside.submit(client.fine_tuning.jobs.cancel, job.id)
        assert json.loads(next(lines))["message"] == "Cancelled"
        assert list(lines) == ["[DONE]"]


def test_checkpoints_are_told_with_their_steps_numbers(
    client: openai.OpenAI, jobs_server: JobsServer
) -> None:
    job = create(client, suffix="may")
    assert client.fine_tuning.jobs.checkpoints.list(job.id).data == []
    run = jobs_server.store.folder(job.id) / RUN
    for step in (10, 20, 30):
        (run / f"checkpoints/step-{step:08d}").mkdir(parents=True)
        (run / f"checkpoints/step-{step:08d}/state.json").write_text("{}")
    (run / "checkpoints/.step-00000040").mkdir()  # being written
    (run / "events.jsonl").write_text(
        '{"kind": "step", "step": 20, "policy_loss": 0.5, "reward": 0.25, "seconds": 2.0}\n'
        '{"kind": "evaluation", "step": 20, "average": 0.75}\n{"kind": "st'
    )
    page = client.fine_tuning.jobs.checkpoints.list(job.id, limit=2)
    assert [each.step_number for each in page.data] == [30, 20]
    assert [each.step_number for each in page] == [30, 20, 10]
    told: Any = page.data[1]
    assert told.fine_tuning_job_id == job.id
    assert told.fine_tuned_model_checkpoint == f"{POLICY}@may-{job.id[-8:]}:ckpt-step-20"
    assert (told.metrics.step, told.metrics.train_loss, told.metrics.average) == (20, 0.5, 0.75)
    # 80 of 100 steps are left, two seconds each.
    jobs_server.store.change(job.id, lambda state: state.model_copy(update={"status": "running"}))
    left = client.fine_tuning.jobs.retrieve(job.id).estimated_finish
    assert left is not None
    assert 150 < left - time.time() < 161


@pytest.mark.parametrize(
    "job_id", ["ftjob-0", "ftjob-ABCDEFGHIJKLMNOP", "..%2F..", "%00", "a" * 999]
)
@pytest.mark.parametrize("what", ["", "/events", "/events?stream=true", "/checkpoints"])
def test_unknown_ids_are_404(job_id: str, what: str, plain: httpx2.Client) -> None:
    answer = plain.get(f"/v1/fine_tuning/jobs/{job_id}{what}")
    assert answer.status_code == 404, answer.text
    if "%2F" not in job_id:
        assert answer.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("what", ["cancel", "pause", "resume"])
def test_unknown_ids_cannot_be_changed(what: str, plain: httpx2.Client) -> None:
    assert plain.post(f"/v1/fine_tuning/jobs/ftjob-0123456789abcdef/{what}").status_code == 404


def test_an_event_line_that_was_cut_off_costs_only_itself(
    client: openai.OpenAI, jobs_server: JobsServer
) -> None:
    job, store = create(client), jobs_server.store
    with open(store.folder(job.id) / "events.jsonl", "a") as file:
        file.write('{"id": "ftevent-')  # a crash
    store.tell(job.id, "goes on")
    assert [event.message for event in store.all_events(job.id)][1:] == ["goes on"]


def test_a_damaged_state_loses_no_job(client: openai.OpenAI, jobs_server: JobsServer) -> None:
    job, store = create(client), jobs_server.store
    store.change(job.id, lambda state: state.model_copy(update={"attempts": 3}))
    (store.folder(job.id) / "state.json").write_text('{"status": "runn')
    assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"
    assert job.id in store.waiting()
    assert "state.json was damaged" in client.fine_tuning.jobs.list_events(job.id).data[0].message


def test_a_folder_without_a_whole_record_is_no_job(
    client: openai.OpenAI, jobs_server: JobsServer
) -> None:
    half = jobs_server.store.runs / "ftjob-0000000000000000"
    half.mkdir()
    assert half.name not in [job.id for job in client.fine_tuning.jobs.list()]
    broken = jobs_server.store.runs / "ftjob-1111111111111111"
    broken.mkdir()
    (broken / "job.json").write_text("{}")
    try:
        assert broken.name not in [job.id for job in client.fine_tuning.jobs.list(limit=3)]
    finally:
        os.remove(broken / "job.json")
