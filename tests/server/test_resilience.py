"""An engine that dies, a server that is full: nobody sees anything but 200, 429 or 503."""

import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.factories import POLICY, PRM
from tests.server.conftest import HTTP, RunningServer, answers, poll, rung_serve

SCORE = {"model": PRM, "items": [{"problem": "1+1", "steps": ["1+1=2", "Answer: 2"]}]}
SEARCH = {
    "policy": POLICY,
    "prm": PRM,
    "problem": "1+1",
    "strategy": {"type": "best_of_n", "n": 4},
    "sampling": {"max_tokens": 50, "seed": 1},
}


def children(server: RunningServer) -> list[int]:
    """The engine, and the processes that compare answers."""
    path = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def engine_pids(server: RunningServer) -> list[int]:
    """Of the children, the engine."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(server)}
    return [pid for pid, command in commands.items() if b"prm.engine.worker" in command]


@pytest.mark.slow
def test_sixteen_clients_see_only_200_or_503_while_the_engine_is_killed(
    tiny_models: Path,
) -> None:
    with rung_serve(tiny_models) as server:
        stop = threading.Event()
        statuses: Counter[int] = Counter()

        def post(client: int) -> None:
            path, body = ("/v1/search", SEARCH) if client % 2 else ("/v1/prm/score", SCORE)
            with httpx2.Client(base_url=server.url, timeout=60) as http:
                while not stop.is_set():
                    response = http.post(path, json=body)
                    statuses[response.status_code] += 1
                    if response.status_code == 503:
                        assert int(response.headers["Retry-After"]) >= 1
                        # What a well-behaved client does, only sooner.
                        time.sleep(0.05)

        with ThreadPoolExecutor(16) as pool:
            clients = [pool.submit(post, number) for number in range(16)]
            for _ in range(2):
                before = statuses[200]
                poll(lambda b=before: statuses[200] > b + 50, seconds=30, what="traffic")  # type: ignore[misc]
                for pid in engine_pids(server):
                    os.kill(pid, signal.SIGKILL)
                poll(
                    lambda: not answers(f"{server.url}/health/ready"), seconds=10, what="not ready"
                )
                assert answers(f"{server.url}/health/live")
                poll(lambda: answers(f"{server.url}/health/ready"), seconds=60, what="ready again")
            before = statuses[200]
            poll(lambda: statuses[200] > before + 50, seconds=30, what="traffic after")
            stop.set()
            for client in clients:
                client.result()
        assert set(statuses) <= {200, 503}, statuses
        told = HTTP.get(f"{server.url}/metrics").text
        assert "rung_engine_restarts_total 2.0" in told


@pytest.mark.slow
def test_a_stopped_engine_costs_its_callers_seconds_and_no_answer(tiny_models: Path) -> None:
    with rung_serve(tiny_models, RUNG_ENGINE_SILENCE_S="5") as server:
        (engine,) = engine_pids(server)
        os.kill(engine, signal.SIGSTOP)
        with ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(httpx2.post, f"{server.url}{path}", json=body, timeout=120)
                for path, body in [("/v1/prm/score", SCORE), ("/v1/search", SEARCH)] * 4
            ]
            # The silence, and the start of another engine on a machine that may be busy.
            took = poll(lambda: all(a.done() for a in asked), seconds=90, what="answers")
        assert took > 2
        assert [a.result().status_code for a in asked] == [200] * 8
        told = HTTP.get(f"{server.url}/metrics").text
        assert "rung_engine_restarts_total 1.0" in told
        (another,) = engine_pids(server)
        assert another != engine


def test_a_full_server_refuses_at_once_and_says_when_to_come_back(tiny_models: Path) -> None:
    with rung_serve(tiny_models, RUNG_MAX_IN_FLIGHT="1") as server:
        long = SEARCH | {"strategy": {"type": "best_of_n", "n": 512}}
        long["sampling"] = {"max_tokens": 200}
        with (
            ThreadPoolExecutor(1) as pool,
            httpx2.Client(base_url=server.url, timeout=60) as http,
        ):
            running = pool.submit(
                lambda: httpx2.post(f"{server.url}/v1/search", json=long, timeout=120)
            )
            poll(
                lambda: "rung_requests_in_flight 1.0" in http.get("/metrics").text,
                seconds=10,
                what="in flight",
            )
            response = http.post("/v1/prm/score", json=SCORE)
            assert response.status_code == 429
            assert int(response.headers["Retry-After"]) >= 1
            assert response.json()["error"]["type"] == "rate_limit_error"
            assert running.result().status_code == 200
            assert http.post("/v1/prm/score", json=SCORE).status_code == 200


def test_the_server_is_up_within_the_promised_seconds(server: RunningServer) -> None:
    # 2 s and 15 s are promised on an idle machine; these tests share theirs with so many others.
    others = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert server.live_s < 4 * others
    assert server.ready_s < 30 * others


def test_stopping_the_server_leaves_no_engine(tiny_models: Path) -> None:
    with rung_serve(tiny_models) as server:
        assert len(engine_pids(server)) == 1
        pids = children(server)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_engine_outlives_no_killed_server(tiny_models: Path) -> None:
    with rung_serve(tiny_models) as server:
        assert len(engine_pids(server)) == 1
        pids = children(server)
        server.process.kill()
        server.process.wait()
        poll(lambda: all(map(_is_gone, pids)), seconds=10, what="gone")


def _is_gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
