"""A job whose disk fills up says so, and goes on when there is room."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from server.jobs.store import JobStore
from tests.factories import PRM
from tests.server.conftest import poll, rung_serve

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB; skips the test where none can be mounted."""
    folder = tmp_path / "runs"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here: it takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_fails_a_job_that_goes_on_when_there_is_room(
    tiny_models: Path, small_disk: Path
) -> None:
    store = JobStore(small_disk)
    with (
        rung_serve(tiny_models, RUNG_RUNS=str(small_disk)) as server,
        httpx2.Client(base_url=server.url, timeout=60) as http,
    ):
        job_id = _start(http)
        checkpoints = store.folder(job_id) / "run" / "checkpoints"

        def reached() -> int:
            return max((int(p.name[5:]) for p in checkpoints.glob("step-*")), default=0)

        poll(lambda: reached() > 0, seconds=90, what="a checkpoint")
        filler = small_disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(os.urandom(1 << 12)):
                pass
        poll(lambda: _job(http, job_id)["status"] == "failed", seconds=60, what="failed")
        error = _job(http, job_id)["error"]
        assert error["code"] == "disk_full"
        assert "has no room left; make some, and resume the job" in error["message"]
        filler.unlink()
        before = reached()
        assert before > 0
        assert http.post(f"/v1/fine_tuning/jobs/{job_id}/resume").status_code == 200
        poll(lambda: reached() > before, seconds=90, what="it goes on")
        http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
        poll(lambda: _job(http, job_id)["status"] == "cancelled", seconds=10, what="cancelled")


def _start(http: httpx2.Client) -> str:
    """A job that is still at it when its disk is full."""
    rows = [
        {"problem": f"{n}+1", "steps": [f"{n}+1={n + 1 + wrong}"], "correct": not wrong}
        for n in range(8)
        for wrong in (False, True)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    uploaded = http.post(
        "/v1/files", files={"file": ("rows.jsonl", text)}, data={"purpose": "fine-tune"}
    )
    method = {"steps": 20_000, "checkpoint_every": 2, "gate": False}
    told = http.post(
        "/v1/fine_tuning/jobs",
        json={
            "model": PRM,
            "training_file": uploaded.json()["id"],
            "method": {"type": "prime_feedback", "prime_feedback": method},
        },
    )
    assert told.status_code == 200, told.text
    return str(told.json()["id"])


def _job(http: httpx2.Client, job_id: str) -> dict[str, Any]:
    return dict(http.get(f"/v1/fine_tuning/jobs/{job_id}").json())
