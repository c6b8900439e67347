"""Versions swapped under load: does a request fail, does a score mix versions, who waits?

    python -m benchmarks.swapping [--clients 64] [--swaps 20] [--json out.json]

A server with the bundled models is asked by many clients that never pause, first for a while
without a swap, then while version after version of the PRM is made live (the bundled weights with a
little noise each, so that their scores differ). Every answer is compared with what the version that
it names says when it is read alone, by the engine's code and without a server. Clients and server
share the machine's cores.
"""

import argparse
import asyncio
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import torch
from safetensors.torch import load_file, save_file

from benchmarks.scoring.child import Spec
from benchmarks.scoring.over_http import MODEL, PATH, start_server
from benchmarks.scoring.texts import Request, TextItem, mixed_requests
from prm.chat import ChatTokenizer
from prm.engine.golden import golden_raw
from prm.engine.model import CausalLM
from prm.engine.reader import read_now
from prm.families import FAMILIES
from prm.manifest import ModelVersion, PrmManifest
from prm.registry import Registry, publish, read_version
from server.settings import BUNDLED_MODELS
from training.progress import say, stage

TOLERANCE = 1e-3
NOISE = 0.02


@dataclass(slots=True)
class Seen:
    """What the clients got: seconds, and answers with the requests that they are of."""

    seconds: list[float] = field(default_factory=list)
    answers: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Of the seconds, in milliseconds."""
        ordered = sorted(self.seconds)
        return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def make_versions(root: Path, count: int, name: str = MODEL) -> list[str]:
    """So many versions of a PRM with noise on its weights, published and not live."""
    registry = Registry.open(root)
    base = registry.get(name)
    assert base is not None
    assert isinstance(base.manifest, PrmManifest)
    (policy,) = registry.references_of(base)
    names = []
    with stage("versions", count) as advance:
        for number in range(count):
            manifest = base.manifest.model_copy(update={"version": f"noise-{number}"})
            with tempfile.TemporaryDirectory() as folder:
                staged = _with_noise(base.folder, Path(folder), seed=number)
                draft = ModelVersion(staged, manifest)
                models = {v.key: CausalLM.load(v.folder) for v in (draft, policy)}
                golden = tuple(
                    one.model_copy(
                        update={"raw": tuple(golden_raw(draft, ChatTokenizer(staged), models, one))}
                    )
                    for one in manifest.golden
                )
                manifest = manifest.model_copy(update={"golden": golden})
                publish(root, staged, manifest, live=False)
            names.append(manifest.version)
            advance(number + 1, "")
    return names


def _with_noise(folder: Path, staged: Path, *, seed: int) -> Path:
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, staged / path.name)
    draw = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + NOISE * tensor.abs().mean() * torch.randn(tensor.shape, generator=draw)
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, staged / "model.safetensors", metadata={"format": "pt"})
    return staged


async def ask_for(
    port: int, seconds: float, *, clients: int, seed: int, requests: Sequence[Request]
) -> Seen:
    """So many clients, each with its next request the moment that it has an answer."""
    seen, places = Seen(), itertools.count(seed)
    until = time.perf_counter() + seconds
    limits = httpx2.Limits(max_connections=clients)

    async def one_client(http: httpx2.AsyncClient) -> None:
        while time.perf_counter() < until:
            place = next(places) % len(requests)
            body = {"model": MODEL, "items": [item.to_json() for item in requests[place]]}
            started = time.perf_counter()
            try:
                answer = await http.post(PATH, json=body)
            except httpx2.TransportError as error:
                seen.failures.append(repr(error))
                continue
            seen.seconds.append(time.perf_counter() - started)
            if answer.status_code == 200:
                seen.answers.append((place, answer.json()))
            else:
                seen.failures.append(f"{answer.status_code}: {answer.text[:200]}")

    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=120
    ) as http:
        await asyncio.gather(*(one_client(http) for _ in range(clients)))
    return seen


async def swap_all(port: int, versions: Sequence[str], seconds: float) -> list[float]:
    """Make one after the other live; for each, seconds from the request to its first answer."""
    took = []
    probe = {
        "model": MODEL,
        "items": [TextItem(problem="Evaluate 1+1", steps=("1+1=2",)).to_json()],
    }
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
        for version in versions:
            started = time.perf_counter()
            path = f"/v1/prm/models/{MODEL}/promote"
            answer = await http.post(path, json={"version": version})
            assert answer.status_code == 200, answer.text
            answer = await http.post(PATH, json=probe)
            assert answer.json()["model_version"] == version
            took.append(time.perf_counter() - started)
            await asyncio.sleep(max(0.0, seconds / len(versions) - took[-1]))
    return took


def count_wrong(root: Path, seen: Seen, requests: Sequence[Request]) -> tuple[int, float]:
    """Answers whose scores are not those of the version that they name, and the greatest gap."""
    policy = Registry.open(root).get(MODEL.replace("prm", "policy"))
    assert policy is not None
    reference = CausalLM.load(policy.folder)
    by_version: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for place, answer in seen.answers:
        by_version.setdefault(answer["model_version"], []).append((place, answer))
    wrong, worst, done = 0, 0.0, 0
    with stage("checking", len(seen.answers)) as advance:
        for name, answers in by_version.items():
            version = read_version(root / MODEL / name)
            assert isinstance(version.manifest, PrmManifest)
            models = {version.key: CausalLM.load(version.folder), policy.key: reference}
            family = FAMILIES[version.manifest.family].load(version, ChatTokenizer(version.folder))
            for place, answer in answers:
                encoded = [family.encode(item.to_trajectory()) for item in requests[place]]
                outputs = iter(read_now(models, [read for item in encoded for read in item.reads]))
                gap = 0.0
                for item, told in zip(encoded, answer["data"], strict=True):
                    steps = family.score(item, [next(outputs) for _ in item.reads]).steps
                    for ours, theirs in zip(steps, told["steps"], strict=True):
                        gap = max(gap, abs(ours.score - theirs["score"]))
                wrong += gap > TOLERANCE
                worst = max(worst, gap)
                done += 1
                advance(done, name)
    return wrong, worst


@contextmanager
def _models() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rung-swapping-") as folder:
        yield Path(shutil.copytree(BUNDLED_MODELS, Path(folder) / "models"))


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swapping", description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each of the two parts")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ |= {
        "OMP_WAIT_POLICY": "passive",
        "TQDM_DISABLE": "1",
        # Room for the one beside them that changes versions and looks.
        "RUNG_MAX_IN_FLIGHT": str(arguments.clients + 8),
    }
    torch.set_num_threads(1)
    requests = mixed_requests(2_000, 0)
    with _models() as root:
        versions = make_versions(root, arguments.swaps)
        port, server = start_server(
            Spec(kind="server", folder=str(root), dtype="float32", threads=1)
        )

        def load(seed: int) -> Coroutine[Any, Any, Seen]:
            return ask_for(
                port, arguments.seconds, clients=arguments.clients, seed=seed, requests=requests
            )

        async def both() -> tuple[Seen, list[float]]:
            swapping = swap_all(port, versions, arguments.seconds)
            seen, took = await asyncio.gather(load(1_000), swapping)
            return seen, took

        try:
            say(f"{arguments.clients} clients, {arguments.seconds:g} s without a swap")
            still: Seen = asyncio.run(load(0))
            say(f"the same with {arguments.swaps} swaps")
            moving, took = asyncio.run(both())
        finally:
            server.terminate()
            server.wait(timeout=30)
        wrong, worst = count_wrong(root, moving, requests)
    told = {
        "requests": len(moving.seconds),
        "failed": len(still.failures) + len(moving.failures),
        "wrong_scores": wrong,
        "greatest_gap": worst,
        "versions_seen": len({answer["model_version"] for _, answer in moving.answers}),
        "p50_ms": {"still": still.quantile(0.5), "swapping": moving.quantile(0.5)},
        "p99_ms": {"still": still.quantile(0.99), "swapping": moving.quantile(0.99)},
        "p99_ratio": moving.quantile(0.99) / still.quantile(0.99),
        "swap_s": {"median": statistics.median(took), "greatest": max(took)},
    }
    text = json.dumps(told, indent=1)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    for failure in moving.failures[:5]:
        say(f"failed: {failure}")


if __name__ == "__main__":
    main()
