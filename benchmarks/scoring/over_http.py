"""The server over HTTP, and the same reads without it: the engine's call, and a Reader alone."""

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import httpx2

from benchmarks.scoring.child import Spec, TakeTurn, Task
from benchmarks.scoring.texts import Request, mixed_requests, single_requests
from benchmarks.scoring.workloads import QUICK, Sizes
from prm.chat import ChatTokenizer
from prm.engine.client import EngineClient
from prm.engine.process import EngineOptions
from prm.families import FAMILIES
from prm.families.base import Read
from prm.manifest import PrmManifest
from prm.registry import Registry

MODEL = "rung-arith-prm"
PATH = "/v1/prm/score"
HEADERS = {"Content-Type": "application/json"}


def load(spec: Spec) -> TakeTurn:
    """`engine-call`, `engine-flat` or `server`."""
    makers = {"engine-call": _engine_call, "engine-flat": _engine_flat, "server": _server}
    return makers[spec.kind](spec)


def _engine_call(spec: Spec) -> TakeTurn:
    """`EngineClient.read`, one after the other, tokens made before: what a request cannot save."""
    registry = Registry.open(Path(spec.folder))
    runner = asyncio.Runner()
    engine = EngineClient(_folders(registry), EngineOptions(threads=spec.threads))

    async def start() -> None:
        engine.start()
        await engine.wait_settled()

    async def read_all(reads: Sequence[Sequence[Read]]) -> list[float]:
        took = []
        for some in reads:
            started = time.perf_counter()
            await engine.read(some)
            took.append(1e3 * (time.perf_counter() - started))
        return took

    def take_turn(task: Task) -> Mapping[str, Any]:
        reads = _reads(registry, single_requests(_sizes(task).requests, task.round))
        return _milliseconds("", runner.run(read_all(reads)))

    runner.run(start())
    return take_turn


def _engine_flat(spec: Spec) -> TakeTurn:
    """New Readers over the same models, all reads of all requests at once: the engine's best."""
    import torch

    from prm.engine.model import CausalLM
    from prm.engine.reader import Reader

    torch.set_num_threads(spec.threads)
    registry = Registry.open(Path(spec.folder))
    models = {version.key: CausalLM.load(version.folder) for version in registry}

    def take_turn(task: Task) -> Mapping[str, Any]:
        requests = mixed_requests(_sizes(task).client_requests, task.round)
        reads = [read for some in _reads(registry, requests) for read in some]
        started = time.perf_counter()
        for name in models:
            Reader(models[name]).read([read for read in reads if read.model == name])
        return {
            "seconds": time.perf_counter() - started,
            "tokens": sum(len(read.ids) for read in reads),
        }

    return take_turn


def _server(spec: Spec) -> TakeTurn:
    """`rung serve` in this process group, asked by one client or by many."""
    registry = Registry.open(Path(spec.folder))
    port, _ = start_server(spec)

    def take_turn(task: Task) -> Mapping[str, Any]:
        sizes = _sizes(task)
        if task.workload == "single":
            return _one_after_the_other(port, single_requests(sizes.requests, task.round))
        requests = mixed_requests(sizes.client_requests, task.round)
        result = asyncio.run(_closed_loop(port, requests, clients=sizes.clients))
        reads = (read for some in _reads(registry, requests) for read in some)
        return result | {"tokens": sum(len(read.ids) for read in reads)}

    return take_turn


def start_server(spec: Spec) -> "tuple[int, subprocess.Popen[bytes]]":
    """Start one, in this process's group; its port and its process once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    server = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", f"--port={port}", f"--models={spec.folder}"],
        env=os.environ
        | {"RUNG_THREADS": str(spec.threads), "RUNG_RUNS": mkdtemp(prefix="rung-bench-")},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )
    while not _is_ready(port):
        assert server.poll() is None, "the server ended"
        time.sleep(0.1)
    return port, server


def _is_ready(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
    except httpx2.TransportError:
        return False


def _one_after_the_other(port: int, requests: Sequence[Request]) -> dict[str, Any]:
    """Every request alone, on one connection; then all of them again, when their scores are known.

    The standard library's client: a request costs it a few tenths of a millisecond less than a
    comfortable one, and the server's time is what is asked for.
    """
    connection = HTTPConnection("127.0.0.1", port)
    result: dict[str, Any] = {}
    for prefix in ("", "known_"):
        took = []
        inside: dict[str, list[float]] = {}
        for body in map(_body, requests):
            started = time.perf_counter()
            connection.request("POST", PATH, body, HEADERS)
            response = connection.getresponse()
            answer = response.read()
            took.append(1e3 * (time.perf_counter() - started))
            assert response.status == 200, answer
            for name, milliseconds in json.loads(answer)["timing_ms"].items():
                inside.setdefault(name, []).append(milliseconds)
        result |= _milliseconds(prefix, took)
        # As the server itself tells it: encode, queue, inference, total.
        medians = {name: statistics.median(values) for name, values in inside.items()}
        result[f"{prefix}server_ms"] = medians
    connection.close()
    return result


async def _closed_loop(port: int, requests: Sequence[Request], *, clients: int) -> dict[str, Any]:
    """Clients that each send the next request as soon as they have their answer."""
    bodies = iter([_body(request) for request in requests])
    took: list[float] = []

    async def client(http: httpx2.AsyncClient, bodies: Iterator[bytes]) -> None:
        for body in bodies:
            started = time.perf_counter()
            response = await http.post(PATH, content=body, headers=HEADERS)
            took.append(1e3 * (time.perf_counter() - started))
            assert response.status_code == 200, response.text

    limits = httpx2.Limits(max_connections=clients)
    url = f"http://127.0.0.1:{port}"
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=300) as http:
        started = time.perf_counter()
        await asyncio.gather(*(client(http, bodies) for _ in range(clients)))
        seconds = time.perf_counter() - started
    return {"seconds": seconds} | _milliseconds("", took)


def _body(request: Request) -> bytes:
    return json.dumps({"model": MODEL, "items": [item.to_json() for item in request]}).encode()


def _reads(registry: Registry, requests: Sequence[Request]) -> list[list[Read]]:
    """What the server makes of each request, before the engine."""
    version = registry.get(MODEL)
    assert version is not None
    assert isinstance(version.manifest, PrmManifest)
    family = FAMILIES[version.manifest.family].load(version, ChatTokenizer(version.folder))
    return [
        [read for item in request for read in family.encode(item.to_trajectory()).reads]
        for request in requests
    ]


def _folders(registry: Registry) -> list[Path]:
    return [version.folder for version in registry]


def _milliseconds(prefix: str, took: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile of latencies."""
    percentiles = statistics.quantiles(took, n=100, method="inclusive")
    return {f"{prefix}median_ms": statistics.median(took), f"{prefix}p99_ms": percentiles[98]}


def _sizes(task: Task) -> Sizes:
    return QUICK if task.is_quick else Sizes()
