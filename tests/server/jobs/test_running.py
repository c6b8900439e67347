"""Jobs that really run: by `rung worker` processes over a real Redis, killed at any moment."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from prm.registry import read_verdict
from server.jobs.store import JobStore
from tests.factories import PRM, publish_tiny_models
from tests.redis_server import RedisServer, running_redis
from tests.server.conftest import poll, rung_serve
from training.spec import LabelledData

pytestmark = [pytest.mark.redis, pytest.mark.slow]
# Long enough to be killed in the middle of, at some twenty milliseconds a step.
LONG = {"steps": 300, "checkpoint_every": 20, "evaluation": False}


@dataclass(kw_only=True)
class Plant:
    """A server that runs no jobs, its Redis, and the workers that a test starts."""

    folder: Path
    models: Path
    http: httpx2.Client
    redis: RedisServer
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def store(self) -> JobStore:
        """The jobs."""
        return JobStore(self.folder / "runs")

    @contextmanager
    def worker(self, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """A worker process; SIGKILLed at the end, where it still runs."""
        own = {
            "REDIS_URL": self.redis.url,
            "RUNG_RUNS": str(self.folder / "runs"),
            "RUNG_MODELS": str(self.models),
        }
        with open(self.folder / "worker.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "server", "worker"],
                env={**os.environ, **own, **environment},
                stderr=log,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def upload(self, rows: list[dict[str, Any]]) -> str:
        """A file's id."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        told = self.http.post(
            "/v1/files", files={"file": ("rows.jsonl", text)}, data={"purpose": "fine-tune"}
        )
        return str(told.json()["id"])

    def start(self, **method: Any) -> str:
        """A job on graded responses, that no gate is asked about if nothing else is said."""
        settings = {"gate": False, **method}
        told = self.http.post(
            "/v1/fine_tuning/jobs",
            json={
                "model": PRM,
                "seed": 5,
                "training_file": self.upload(graded("Evaluate")),
                "validation_file": self.upload(graded("Compute")),
                "method": {"type": "prime_feedback", "prime_feedback": settings},
            },
        )
        assert told.status_code == 200, told.text
        return str(told.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """As the API tells of it."""
        return dict(self.http.get(f"/v1/fine_tuning/jobs/{job_id}").json())

    def wait(self, job_id: str, *statuses: str, seconds: float = 120) -> dict[str, Any]:
        """Until it has one of these; the job then."""
        wanted = statuses or ("succeeded", "failed", "cancelled")
        poll(lambda: self.job(job_id)["status"] in wanted, seconds=seconds, what=f"{wanted}")
        return self.job(job_id)

    def checkpointed(self, job_id: str, step: int) -> None:
        """Until a step lies in a checkpoint."""
        folder = self.store.folder(job_id) / "run" / "checkpoints"

        def is_there() -> bool:
            return any(int(p.name[5:]) >= step for p in folder.glob("step-*"))

        poll(is_there, seconds=90, what=f"step {step}")

    def messages(self, job_id: str) -> list[str]:
        """Its events, the oldest first."""
        return [event.message for event in self.store.all_events(job_id)]

    def trainer(self) -> psutil.Process:
        """The process that trains."""
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if "training.run" in words and any(str(self.folder) in word for word in words):
                return process
        raise AssertionError("nobody trains")


def graded(verb: str) -> list[dict[str, Any]]:
    """Responses, half of them right."""
    return [
        {"problem": f"{verb} {n}+1", "steps": [f"{n}+1={n + 1 + wrong}"], "correct": not wrong}
        for n in range(12)
        for wrong in (False, True)
    ]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """One for all tests here."""
    folder = tmp_path_factory.mktemp("plant")
    models = publish_tiny_models(folder / "models")
    with (
        running_redis() as redis,
        rung_serve(
            models, log=folder / "log", REDIS_URL=redis.url, RUNG_RUNS=str(folder / "runs")
        ) as server,
        httpx2.Client(base_url=server.url, timeout=60) as http,
    ):
        yield Plant(folder=folder, models=models, http=http, redis=redis)


def test_killed_trainers_and_workers_change_nothing_of_what_comes_out(
    plant: Plant, tmp_path: Path
) -> None:
    job_id = plant.start(**LONG)
    with plant.worker() as first:
        plant.checkpointed(job_id, 40)
        plant.trainer().kill()
        plant.checkpointed(job_id, 120)
        trainer = plant.trainer()
        first.send_signal(signal.SIGKILL)
        poll(lambda: not trainer.is_running(), seconds=5, what="the trainer is dead, too")
    with plant.worker(), plant.worker():
        job = plant.wait(job_id)
    assert job["status"] == "succeeded", plant.messages(job_id)
    assert job["fine_tuned_model"] == f"{PRM}@{job_id[-8:]}"
    assert any("train ended by signal 9; it goes on" in said for said in plant.messages(job_id))
    folder = plant.store.folder(job_id)
    subprocess.run(
        [
            *(sys.executable, "-m", "training.run"),
            *(str(folder / "training.json"), f"--out={tmp_path / 'run'}"),
        ],
        check=True,
        capture_output=True,
    )
    assert _weights(folder / "run") == _weights(tmp_path / "run")
    rows = (folder / "run" / "events.jsonl").read_text().splitlines()
    steps = [json.loads(row)["step"] for row in rows]
    assert steps == sorted(set(steps)) == list(range(1, 301))


def test_a_paused_job_goes_on_where_it_was_and_a_cancelled_one_ends(plant: Plant) -> None:
    with plant.worker():
        job_id = plant.start(**LONG | {"checkpoint_every": 1000})
        plant.wait(job_id, "running")
        poll(lambda: any("Step" in m for m in plant.messages(job_id)), seconds=60, what="a step")
        plant.http.post(f"/v1/fine_tuning/jobs/{job_id}/pause")
        paused = plant.wait(job_id, "queued")
        assert paused["paused"]
        # Nothing but the pause has made one.
        (checkpoint,) = (plant.store.folder(job_id) / "run" / "checkpoints").glob("step-*")
        reached = int(checkpoint.name.removeprefix("step-"))
        assert 0 < reached < 300
        plant.http.post(f"/v1/fine_tuning/jobs/{job_id}/resume")
        plant.wait(job_id, "running")
        rows = plant.store.folder(job_id) / "run" / "events.jsonl"
        poll(lambda: len(rows.read_bytes().splitlines()) > reached, seconds=60, what="more steps")
        plant.http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
        poll(lambda: plant.job(job_id)["status"] == "cancelled", seconds=6, what="cancelled")
        assert plant.job(job_id)["fine_tuned_model"] is None


def test_a_job_is_found_when_redis_was_away_and_came_back_empty(plant: Plant) -> None:
    plant.redis.kill()
    job_id = plant.start(steps=2)
    assert plant.job(job_id)["status"] == "queued"
    plant.redis.start()
    with plant.worker():
        assert plant.wait(job_id)["status"] == "succeeded", plant.messages(job_id)


def test_the_gate_refuses_a_version_and_keeps_its_report(plant: Plant) -> None:
    with plant.worker():
        # No difference of random scores is shown to be within a thousandth.
        gate = {"metric": "auroc", "margin": 0.001}
        job_id = plant.start(steps=3, gate=gate, optimizer={"lr": 0.05})
        job = plant.wait(job_id)
    assert (job["status"], job["verdict"]) == ("succeeded", "rejected"), plant.messages(job_id)
    verdict = read_verdict(plant.models, PRM, job_id[-8:])
    assert verdict is not None
    assert verdict.reason
    report = json.loads((plant.store.folder(job_id) / "gate.json").read_text())
    assert report == verdict.report
    told = plant.http.post(f"/v1/prm/models/{PRM}/promote", json={"version": job_id[-8:]})
    assert told.status_code == 409


def test_a_job_that_takes_too_much_memory_is_ended_and_can_be_resumed(plant: Plant) -> None:
    with plant.worker(RUNG_JOB_MEMORY_MB="64"):
        job_id = plant.start(steps=2)
        job = plant.wait(job_id)
    assert job["status"] == "failed"
    assert "used more than 64 MiB; lower optimizer.micro_tokens" in job["error"]["message"]
    with plant.worker():
        plant.http.post(f"/v1/fine_tuning/jobs/{job_id}/resume")
        assert plant.wait(job_id, "succeeded")["error"] is None


def test_a_job_that_hangs_is_ended_and_tried_again_so_many_times(plant: Plant) -> None:
    with plant.worker(RUNG_JOB_SILENCE_S="0.01", RUNG_JOB_ATTEMPTS="2"):
        job_id = plant.start(steps=2)
        job = plant.wait(job_id)
    assert job["status"] == "failed"
    assert "gave no sign of life for 0.01 s; it was tried 2 times" in job["error"]["message"]
    assert any("it goes on" in said for said in plant.messages(job_id))


def test_what_the_trainer_refuses_fails_once_with_its_words(plant: Plant) -> None:
    job_id = plant.start(steps=2)
    data = plant.store.record(job_id).training.data
    assert isinstance(data, LabelledData)
    data.held_out[0].write_text("no JSON\n")
    with plant.worker():
        job = plant.wait(job_id)
    assert job["status"] == "failed"
    assert "line 1: not JSON" in job["error"]["message"]
    assert "goes on" not in " ".join(plant.messages(job_id))


def _weights(run: Path) -> str:
    return hashlib.sha256((run / "prm" / "model.safetensors").read_bytes()).hexdigest()
