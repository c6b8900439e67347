"""SIGKILL at random to every process of an installation under load: nothing accepted may be lost.

python -m tests.integration.chaos --minutes 10          make chaos

Clients score, give feedback and start jobs all the while; redis, server, engine, worker and trainer
are killed in turn at random, and started anew as systemd or compose would. At the end: every job
that was accepted has come to its end, every accepted feedback is there once, no version is torn,
every answer's scores are those of the version that it names, and the server was back in time.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2

from prm.registry import load_version
from tests.factories import PRM, publish_tiny_models
from tests.integration.plant import Plant, Target
from tests.server.conftest import answers, poll

TARGETS: tuple[Target, ...] = ("server", "engine", "worker", "trainer", "redis")
ITEMS = [
    {"problem": f"Evaluate (3+{n})*2-5", "steps": [f"3+{n}={3 + n}", f"{3 + n}*2={6 + 2 * n}"]}
    for n in range(8)
]


@dataclass
class Seen:
    """What the clients were told, for the account at the end."""

    most_jobs: int
    feedback: dict[str, str] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    scores: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Account:
    """How it ended; `faults` is empty where all held."""

    kills: Mapping[str, int]
    requests: Mapping[str, int]
    feedback: int
    jobs: Mapping[str, int]
    versions: int
    slowest_recovery_s: float
    faults: tuple[str, ...]


def run_chaos(
    folder: Path,
    *,
    seconds: float,
    seed: int,
    between_s: tuple[float, float] = (2.0, 8.0),
    jobs: int = 1000,
    recovers_within_s: float = 10.0,
) -> Account:
    """Kill at random for `seconds`, then let everything come to rest and look.

    A kill every `between_s` seconds; at most `jobs` jobs are started. The server has to answer
    `recovers_within_s` after a kill, where it is not killed once more before that.
    """
    rng = random.Random(seed)
    models = publish_tiny_models(folder / "models")
    plant = Plant(folder=folder, models=models, settings={"RUNG_FEEDBACK_PER_KEY_DAY": "1000000"})
    plant.start()
    seen, stop, kills = Seen(most_jobs=jobs), threading.Event(), Counter[str]()
    clients = [
        threading.Thread(target=_until, args=(stop, client, plant.url, seen, seed + number))
        for number, client in enumerate((_score, _score, _give_feedback, _start_job))
    ]
    try:
        for client in clients:
            client.start()
        ends = time.monotonic() + seconds
        bag: list[Target] = []
        outages: list[float] = []
        while time.monotonic() < ends:
            time.sleep(rng.uniform(*between_s))
            # Each as often as the others.
            bag = bag or rng.sample(TARGETS, len(TARGETS))
            target = bag.pop()
            was_there = plant.kill(target)
            kills[target] += was_there
            if was_there and target in ("server", "engine"):
                outages.append(time.monotonic())
        poll(lambda: _is_back(seen, outages), seconds=120, what="answers at the end")
        recovery = _slowest_recovery(seen.answered, outages)
        stop.set()
        for client in clients:
            client.join()
        account = _account(plant, models, seen, kills, recovery)
        if recovery <= recovers_within_s:
            return account
        fault = f"no score for {recovery:.1f} s after a kill"
        return replace(account, faults=(*account.faults, fault))
    finally:
        stop.set()
        plant.stop()


def _until(
    stop: threading.Event,
    client: Callable[[httpx2.Client, Seen, random.Random], None],
    url: str,
    seen: Seen,
    seed: int,
) -> None:
    """A client that goes on whatever happens to the server, as a patient one would."""
    rng = random.Random(seed)
    with httpx2.Client(base_url=url, timeout=30) as http:
        while not stop.is_set():
            try:
                client(http, seen, rng)
            except httpx2.TransportError as error:
                seen.requests[type(error).__name__] += 1
                time.sleep(0.1)


def _score(http: httpx2.Client, seen: Seen, rng: random.Random) -> None:
    number = rng.randrange(len(ITEMS))
    answer = http.post("/v1/prm/score", json={"model": PRM, "items": [ITEMS[number]]})
    seen.requests[f"score {answer.status_code}"] += 1
    if answer.status_code != 200:
        if answer.status_code != 503:
            seen.wrong.append(f"score: {answer.status_code} {answer.text[:200]}")
        time.sleep(0.05)
        return
    seen.answered.append(time.monotonic())
    body = answer.json()
    scores = [step["score"] for step in body["data"][0]["steps"]]
    before = seen.scores.setdefault((body["model_version"], number), scores)
    if max(abs(a - b) for a, b in zip(scores, before, strict=True)) > 1e-4:
        seen.wrong.append(f"{body['model_version']}, item {number}: {scores} and {before}")
    time.sleep(0.02)


def _give_feedback(http: httpx2.Client, seen: Seen, rng: random.Random) -> None:
    """Until it is accepted, by one key: a lost answer does not say whether it was."""
    n = rng.randrange(10**6)
    key = f"chaos-{n}-{rng.randrange(10**9)}"
    body = {
        "model": PRM,
        "problem": f"Evaluate {n}+1",
        "response": f"{n}+1={n + 1}\nAnswer: {n + 1}",
        "correct": rng.random() < 0.5,
    }
    for _ in range(200):
        with suppress(httpx2.TransportError):
            answer = http.post("/v1/feedback", json=body, headers={"Idempotency-Key": key})
            seen.requests[f"feedback {answer.status_code}"] += 1
            if answer.status_code == 202:
                seen.feedback[key] = answer.json()["id"]
                break
            if answer.status_code != 503:
                seen.wrong.append(f"feedback: {answer.status_code} {answer.text[:200]}")
                break
        time.sleep(0.1)
    time.sleep(0.05)


def _start_job(http: httpx2.Client, seen: Seen, rng: random.Random) -> None:
    if len(seen.jobs) >= seen.most_jobs:
        time.sleep(0.2)
        return
    lines = "".join(
        json.dumps(
            {
                "problem": f"Evaluate {n}+1",
                "steps": [f"{n}+1={n + 1 + wrong}"],
                "correct": not wrong,
            }
        )
        + "\n"
        for n in range(12)
        for wrong in (False, True)
    )
    uploaded = http.post(
        "/v1/files", files={"file": ("graded.jsonl", lines)}, data={"purpose": "fine-tune"}
    )
    seen.requests[f"file {uploaded.status_code}"] += 1
    if uploaded.status_code == 200:
        method = {"steps": 30, "checkpoint_every": 3}
        job = {
            "model": PRM,
            "training_file": uploaded.json()["id"],
            "method": {"type": "prime_feedback", "prime_feedback": method},
            "seed": rng.randrange(1000),
        }
        answer = http.post("/v1/fine_tuning/jobs", json=job)
        seen.requests[f"job {answer.status_code}"] += 1
        if answer.status_code == 200:
            seen.jobs.append(answer.json()["id"])
        elif answer.status_code not in (429, 503):
            seen.wrong.append(f"job: {answer.status_code} {answer.text[:300]}")
    time.sleep(rng.uniform(8, 16))


def _line(n: int, wrong: bool) -> str:
    steps = [f"{n}+1={n + 1 + wrong}"]
    return json.dumps({"problem": f"Evaluate {n}+1", "steps": steps, "correct": not wrong}) + "\n"


def _is_back(seen: Seen, outages: list[float]) -> bool:
    return not outages or any(time_ > outages[-1] + 0.5 for time_ in seen.answered)


def _slowest_recovery(answered: list[float], outages: list[float]) -> float:
    """From a kill to the next answer, where no other kill lies between; in seconds."""
    slowest = 0.0
    for outage, following in pairwise([*outages, float("inf")]):
        # What was on its way already may still have come.
        back = next((at for at in answered if at > outage + 0.5), float("inf"))
        if back < following:
            slowest = max(slowest, back - outage)
    return slowest


def _account(
    plant: Plant, models: Path, seen: Seen, kills: Counter[str], recovery: float
) -> Account:
    """Wait until all is at rest, and hold what is there against what was promised."""
    faults = list(seen.wrong)
    poll(lambda: answers(f"{plant.url}/health/ready"), seconds=60, what="ready at the end")
    with httpx2.Client(base_url=plant.url, timeout=30) as http:
        jobs = _jobs_at_their_end(http, seen.jobs)
        faults += [
            f"job {job['id']}: {job['status']} {job['error']}"
            for job in jobs
            if job["status"] != "succeeded"
        ]
        stored = _all(http, "/v1/feedback")
    ids = Counter(one["id"] for one in stored)
    faults += [f"feedback {id} is lost" for id in seen.feedback.values() if id not in ids]
    faults += [f"feedback {id} is there {n} times" for id, n in ids.items() if n > 1]
    keys = Counter(seen.feedback.values())
    faults += [f"{id} was given for {n} keys" for id, n in keys.items() if n > 1]
    versions = sorted(models.glob("*/*/STABLE"))
    for stable in versions:
        try:
            load_version(stable.parent)
        except Exception as error:
            faults.append(f"{stable.parent}: {error}")
    made = {job["fine_tuned_model"] for job in jobs if job["status"] == "succeeded"}
    there = {f"{path.parent.parent.name}@{path.parent.name}" for path in versions}
    faults += [f"{name} of a succeeded job is not there" for name in sorted(made - there, key=str)]
    return Account(
        kills=dict(kills),
        requests=dict(sorted(seen.requests.items())),
        feedback=len(seen.feedback),
        jobs=dict(Counter(job["status"] for job in jobs)),
        versions=len(versions),
        slowest_recovery_s=recovery,
        faults=tuple(faults),
    )


def _jobs_at_their_end(http: httpx2.Client, ids: list[str]) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []

    def all_ended() -> bool:
        jobs[:] = [http.get(f"/v1/fine_tuning/jobs/{id}").json() for id in ids]
        return all(job["status"] in ("succeeded", "failed", "cancelled") for job in jobs)

    with suppress(AssertionError):
        poll(all_ended, seconds=60 + 30 * len(ids), what="all jobs ended")
    return jobs


def _all(http: httpx2.Client, path: str) -> list[dict[str, Any]]:
    """Every element of a list that comes in pages."""
    found: list[dict[str, Any]] = []
    while True:
        after = {"after": found[-1]["id"]} if found else {}
        page = http.get(path, params={"limit": 100, **after}).json()
        found += page["data"]
        if not page["has_more"]:
            return found


def main() -> None:
    """Read the command line, run, print the account; ends with 1 where something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.chaos")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        account = run_chaos(
            arguments.folder or Path(scratch),
            seconds=60 * arguments.minutes,
            seed=arguments.seed,
        )
    for name in ("kills", "requests", "feedback", "jobs", "versions", "slowest_recovery_s"):
        print(f"{name}: {getattr(account, name)}")
    for fault in account.faults:
        print(f"FAULT: {fault}")
    sys.exit(1 if account.faults else 0)


if __name__ == "__main__":
    main()
