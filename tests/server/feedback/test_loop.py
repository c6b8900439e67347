"""The loop, closed: labels over HTTP become a job, a version and a verdict, unasked."""

import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.factories import PRM
from tests.server.conftest import poll, rung_serve

EVERY = 60


@pytest.mark.slow
def test_labels_retrain_a_prm_and_the_gate_decides(tiny_models: Path, tmp_path: Path) -> None:
    models = shutil.copytree(tiny_models, tmp_path / "models")
    log = tmp_path / "log"
    with (
        rung_serve(models, log=log, RUNG_RETRAIN_EVERY=str(EVERY)) as server,
        httpx2.Client(base_url=server.url, timeout=60, verify=False) as client,
    ):
        items = [
            {
                "problem": f"Evaluate {n}+{n}",
                "response": f"{n}+{n}={2 * n + (n % 3 == 0)}\nAnswer: {2 * n + (n % 3 == 0)}",
                "answer": str(2 * n),
            }
            for n in range(EVERY)
        ]
        told = client.post("/v1/feedback", json={"items": items})
        assert told.status_code == 202, told.text
        assert [each["correct"] for each in told.json()["data"]] == [
            n % 3 > 0 for n in range(EVERY)
        ]

        def jobs() -> list[dict[str, Any]]:
            return list(client.get("/v1/fine_tuning/jobs").json()["data"])

        def is_over() -> bool:
            return any(job["status"] in ("succeeded", "failed", "cancelled") for job in jobs())

        poll(is_over, seconds=180, what="the job's end")
        (job,) = jobs()
        assert job["status"] == "succeeded", log.read_text()[-2000:]
        assert job["verdict"] in ("passed", "rejected")
        told_prm = client.get(f"/v1/prm/models/{PRM}").json()
        version = job["fine_tuned_model"].partition("@")[2]
        states = {each["id"]: each["state"] for each in told_prm["versions"]}
        assert states[version] == ("live" if job["verdict"] == "passed" else "rejected")
        # What was given whole was scored before the training, for the report.
        report = client.get("/v1/feedback/report").json()
        assert report["keys"][0]["judged"] == EVERY
