"""`rung jobs` and `rung train --follow`, against a server and in folders."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from server.jobs.records import JobState
from tests.server.commands import rung
from tests.server.conftest import poll
from tests.server.jobs.conftest import TASK, JobsServer


@pytest.fixture
def job_id(client: openai.OpenAI) -> str:
    method: Any = {"type": "rloo", "rloo": {"task": TASK, "steps": 3}}
    nothing: Any = None
    return client.fine_tuning.jobs.create(
        model="tiny-policy", training_file=nothing, method=method
    ).id


def tell_steps(server: JobsServer, job_id: str, **end: Any) -> None:
    """What whoever runs the job would tell."""
    for step in (1, 2, 3):
        data = {"step": step, "policy_loss": 0.5, "reward": 0.25, "accuracy": 0.75}
        server.store.tell(job_id, f"Step {step}/3", type="metrics", data=data)
    server.store.tell(job_id, "Evaluation after step 3/3: average 0.5", type="metrics")
    server.store.change(job_id, lambda _: JobState.model_validate({"finished_at": 1} | end))


def test_jobs_are_listed_shown_and_changed(jobs_server: JobsServer, job_id: str) -> None:
    url = f"--url={jobs_server.url}"
    table = rung("jobs", "list", url, COLUMNS="200").stdout
    assert job_id in table
    assert "rloo" in table
    listed = [json.loads(line) for line in rung("jobs", "list", url, "--json").stdout.splitlines()]
    assert listed[0]["id"] == job_id
    shown = rung("jobs", "show", job_id, url).stdout
    assert f"{job_id}: queued, rloo on tiny-policy@1" in shown
    assert "Created fine-tuning job" in shown
    assert "queued, paused" in rung("jobs", "pause", job_id, url).stdout
    assert not json.loads(rung("jobs", "resume", job_id, url, "--json").stdout)["paused"]
    assert "cancelled" in rung("jobs", "cancel", job_id, url).stdout
    again = rung("jobs", "cancel", job_id, url)
    assert again.returncode == 2
    assert "what is over cannot be cancelled" in again.stderr


def test_jobs_need_a_server_and_an_id_that_is_one(jobs_server: JobsServer) -> None:
    assert "name it with --url" in rung("jobs", "list").stderr
    unknown = rung("jobs", "show", "../../x", f"--url={jobs_server.url}")
    assert (unknown.returncode, "404" in unknown.stderr) == (2, True)


def test_a_job_is_followed_through_its_server(jobs_server: JobsServer, job_id: str) -> None:
    with ThreadPoolExecutor() as beside:
        watching = beside.submit(rung, "train", "--follow", job_id, f"--url={jobs_server.url}")
        tell_steps(
            jobs_server, job_id, status="succeeded", fine_tuned_model="a@1", verdict="passed"
        )
        done = watching.result(timeout=30)
    assert done.returncode == 0, done.stderr
    assert "Created fine-tuning job" in done.stdout
    assert "Evaluation after step 3/3: average 0.5" in done.stdout
    assert f"{job_id} succeeded: a@1, passed by its gate" in done.stdout


def test_a_job_is_followed_in_its_folder(jobs_server: JobsServer, job_id: str) -> None:
    error = {"code": "x", "message": "no space left"}
    tell_steps(jobs_server, job_id, status="failed", error=error)
    by_folder = rung("train", "--follow", jobs_server.store.folder(job_id))
    by_id = rung("train", "--follow", job_id, RUNG_RUNS=str(jobs_server.store.runs))
    for done in (by_folder, by_id):
        assert done.returncode == 1
        assert f"{job_id} failed: no space left" in done.stdout


def test_a_run_is_followed_in_its_folder(
    jobs_server: JobsServer, job_id: str, tmp_path: Path
) -> None:
    run = tmp_path / "mine"
    run.mkdir()
    training = jobs_server.store.record(job_id).training
    (run / "job.json").write_text(training.model_dump_json())
    events = run / "events.jsonl"
    with ThreadPoolExecutor() as beside:
        watching = beside.submit(rung, "train", "--follow", run)
        row = '{"kind": "step", "step": %d, "policy_loss": 0.5, "reward": null}\n'
        events.write_text(row % 1 + '{"kind": "evaluation", "step": 1, "average": 0.5}\n{"kin')
        events.write_text(row % 1 + row % 2 + row % 3)
        poll(watching.done, seconds=30, what="the end of the run")
        assert watching.result().returncode == 0
    assert "neither a run's folder nor a job's" in rung("train", "--follow", tmp_path).stderr
