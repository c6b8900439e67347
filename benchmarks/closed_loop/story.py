"""The story itself, over HTTP: what a team would do, and what the server does by itself.

the bundled PRM is measured → a version trained on flipped labels: refused by the gate →
graded answers by /v1/feedback → the server trains a version on them, the gate lets it pass and
it is swapped in, while clients score → it is measured
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.closed_loop.answers import Answers, as_items
from benchmarks.closed_loop.figures import compare, greatest_gap
from benchmarks.closed_loop.load import Load, clients
from benchmarks.scoring.over_http import MODEL, PATH
from prm.evaluation.gate import GateReport
from training.labelled import Line, as_feedback, flipped, write_lines
from training.progress import say

# What a job and a swap may take on a slow machine before the story is given up.
_PATIENCE_S = 600
_ITEMS_PER_REQUEST = 200
_LABELS_PER_REQUEST = 500
# Enough to unlearn: chosen on validation problems.
_DAMAGE = {"steps": 12, "rollouts": {"problems": 64}, "optimizer": {"lr": 3e-4}}
_DAMAGED_LINES = 768


@dataclass(frozen=True, kw_only=True)
class Told:
    """What came of it. `refusal` is the gate's reason, `live` what answers in the end.

    `retrain_s`: from the last label to the first answer by the new version.
    """

    refused: str
    refusal: str
    live: str
    figures: dict[str, GateReport]
    load: Load
    gap: float
    retrain_s: float


def tell(root: Path, runs: Path, answers: Answers, *, num_clients: int = 4) -> Told:
    """Play it all on a copy of the bundled models. Raises AssertionError where it goes astray."""
    with _server(root, runs, retrain_every=len(answers.feedback)) as http:
        before = _live(http), _scores(http, answers.test)
        say(f"{MODEL}@{before[0]} is live")
        refused, refusal = _damage(http, runs, answers)
        say(f"trained on flipped labels, {refused}: refused, {refusal}")
        assert _live(http) == before[0]
        with clients(str(http.base_url), num_clients, answers.test) as load:
            _give_feedback(http, answers.feedback)
            started = time.monotonic()
            say(f"{len(answers.feedback)} graded answers are taken as feedback")
            live = _wait_for_another(http, before[0])
            retrain_s = time.monotonic() - started
            seen = len(load.answers)
            _wait(lambda: len(load.answers) > seen + 5 * num_clients, "answers behind the swap")
        say(f"{MODEL}@{live} passed the gate and is live after {retrain_s:.0f} s")
        after = live, _scores(http, answers.test)
    return Told(
        refused=refused,
        refusal=refusal,
        live=live,
        figures=compare(root, answers.test, before, after),
        load=load,
        gap=greatest_gap(root, load),
        retrain_s=retrain_s,
    )


@contextmanager
def _server(root: Path, runs: Path, *, retrain_every: int) -> Iterator[httpx2.Client]:
    """`rung serve`, which runs its jobs itself, until the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    command = [sys.executable, "-m", "server", "serve", f"--port={port}", f"--models={root}"]
    command += [f"--retrain-every={retrain_every}"]
    own = {"RUNG_RUNS": str(runs), "RUNG_THREADS": "1", "RUNG_KEYS_FILE": str(runs / "no-keys")}
    runs.mkdir(parents=True, exist_ok=True)
    with open(runs / "server.log", "w") as log:
        process = subprocess.Popen(command, env=os.environ | own, stderr=log)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
            _wait(lambda: _is_ready(http), "the server")
            yield http
    finally:
        process.terminate()
        process.wait(timeout=60)


def _damage(http: httpx2.Client, runs: Path, answers: Answers) -> tuple[str, str]:
    """A job on flipped labels, judged by right ones: its version, and why it was refused."""
    lines = flipped(answers.feedback[:_DAMAGED_LINES])
    files = {
        name: _upload(http, write_lines(runs / f"{name}.jsonl", some))
        for name, some in (("training_file", lines), ("validation_file", answers.judged))
    }
    method = {"type": "prime_feedback", "prime_feedback": _DAMAGE}
    asked = http.post(
        "/v1/fine_tuning/jobs",
        json={"model": MODEL, "suffix": "flipped", "method": method, **files},
    )
    job = _settled(http, _checked(asked)["id"])
    assert job["verdict"] == "rejected", f"the gate let a damaged PRM pass: {job}"
    version = job["fine_tuned_model"].partition("@")[2]
    told = _checked(http.get(f"/v1/prm/models/{MODEL}"))["versions"]
    (own,) = [each for each in told if each["id"] == version]
    assert own["state"] == "rejected"
    return version, own["reason"]


def _upload(http: httpx2.Client, path: Path) -> str:
    with path.open("rb") as file:
        sent = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": file})
    return str(_checked(sent)["id"])


def _give_feedback(http: httpx2.Client, lines: Sequence[Line]) -> None:
    items = as_feedback(lines)
    for start in range(0, len(items), _LABELS_PER_REQUEST):
        some = items[start : start + _LABELS_PER_REQUEST]
        key = {"Idempotency-Key": f"story-{start}"}
        taken = _checked(http.post("/v1/feedback", json={"items": some}, headers=key))
        assert len(taken["data"]) == len(some)


def _scores(http: httpx2.Client, lines: Sequence[Line]) -> list[list[float]]:
    """Step scores by the version that is live."""
    items, found = as_items(lines), []
    for start in range(0, len(items), _ITEMS_PER_REQUEST):
        some = items[start : start + _ITEMS_PER_REQUEST]
        told = _checked(http.post(PATH, json={"model": MODEL, "items": some}))
        found += [[step["score"] for step in item["steps"]] for item in told["data"]]
    return found


def _live(http: httpx2.Client) -> str:
    return str(_checked(http.get(f"/v1/prm/models/{MODEL}"))["live"])


def _wait_for_another(http: httpx2.Client, version: str) -> str:
    """The version that is live in place of this one."""

    def has_changed() -> bool:
        # A job that ended otherwise is not waited for.
        for job in _checked(http.get("/v1/fine_tuning/jobs"))["data"]:
            if job["suffix"] == "feedback" and job["status"] in ("succeeded", "failed"):
                assert job["verdict"] == "passed", job
        return _live(http) != version

    _wait(has_changed, "the version that feedback has made")
    return _live(http)


def _settled(http: httpx2.Client, job_id: str) -> dict[str, Any]:
    """A job that is over, and has not failed."""
    found: dict[str, Any] = {}

    def is_over() -> bool:
        found.update(_checked(http.get(f"/v1/fine_tuning/jobs/{job_id}")))
        return found["status"] not in ("validating_files", "queued", "running")

    _wait(is_over, f"the end of {job_id}")
    assert found["status"] == "succeeded", found
    return found


def _is_ready(http: httpx2.Client) -> bool:
    try:
        return http.get("/health/ready").status_code == 200
    except httpx2.TransportError:
        return False


def _wait(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"{what}: not within {_PATIENCE_S} s")
        time.sleep(0.2)


def _checked(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code < 300, f"{answer.status_code}: {answer.text}"
    told: dict[str, Any] = answer.json()
    return told
