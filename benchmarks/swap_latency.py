"""How long a new version takes: from `STABLE` on disk and a promotion to its first answer.

    python -m benchmarks.swap_latency [--swaps 5] [--json out.json]

For the bundled PRM, and for one of 120 million parameters with random weights; one server, nobody
else asks it anything. `http`: a request to promote, then one to score. `folder`: the pointer is
written by this process, and the server asked until the version answers. `second` is the request
after the first, of another text: what the first is slower by, a cold model costs.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
import torch

from benchmarks.scoring.child import Spec
from benchmarks.scoring.over_http import MODEL, PATH, start_server
from benchmarks.scoring.shapes import model_folder
from benchmarks.swapping import make_versions
from prm.chat import ChatTokenizer
from prm.engine.golden import golden_raw
from prm.engine.model import CausalLM
from prm.manifest import ModelVersion, PolicyManifest, PrmManifest
from prm.registry import Registry, promote, publish
from server.settings import BUNDLED_MODELS
from training.progress import say

LARGE = "large-prm"


def add_large(root: Path, work: Path) -> None:
    """A policy and a PRM of 120 million parameters beside the bundled ones, with their tokenizer.

    Both have the same weights, so that every log-ratio is zero.
    """
    registry = Registry.open(root)
    bundled = registry.get(MODEL)
    assert bundled is not None
    assert isinstance(bundled.manifest, PrmManifest)
    (reference,) = registry.references_of(bundled)
    assert isinstance(reference.manifest, PolicyManifest)
    staged = model_folder("120m", work)
    for path in reference.folder.iterdir():
        if path.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(path, staged / path.name)
    config = json.loads((staged / "config.json").read_text())
    config["eos_token_id"] = reference.config["eos_token_id"]
    (staged / "config.json").write_text(json.dumps(config))
    written = reference.manifest.model_copy(update={"name": "large-policy"})
    models = {written.key: CausalLM.load(staged)}
    draft, tokenizer = ModelVersion(staged, written), ChatTokenizer(staged)
    golden = tuple(
        one.model_copy(update={"raw": tuple(golden_raw(draft, tokenizer, models, one))})
        for one in written.golden
    )
    policy = publish(root, staged, written.model_copy(update={"golden": golden}), live=False)
    golden = tuple(
        one.model_copy(update={"raw": (0.0,) * len(one.raw)}) for one in bundled.manifest.golden
    )
    recipe = {**bundled.manifest.recipe, "reference": policy.ref.model_dump()}
    publish(
        root,
        staged,
        bundled.manifest.model_copy(update={"name": LARGE, "recipe": recipe, "golden": golden}),
    )


def first_answers(port: int, root: Path, name: str, versions: list[str]) -> dict[str, Any]:
    """Seconds for each version in turn, half of them by each way."""
    numbers = itertools.count(1000)
    took: dict[str, list[float]] = {"http": [], "folder": [], "first": [], "second": []}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:

        def score() -> str:
            # Never the same text twice: it would be read from the cache. All are as long.
            n = next(numbers)
            steps = [f"{n}+4={n + 4}", f"{n + 4}*2={2 * n + 8}", f"Answer: {2 * n + 8}"]
            item = {"problem": f"Evaluate ({n}+4)*2", "steps": steps}
            answer = http.post(PATH, json={"model": name, "items": [item]})
            assert answer.status_code == 200, answer.text
            return str(answer.json()["model_version"])

        score()
        for place, version in enumerate(versions):
            way, started = ("http", "folder")[place % 2], time.perf_counter()
            if way == "http":
                path = f"/v1/prm/models/{name}/promote"
                assert http.post(path, json={"version": version}).status_code == 200
                asked = time.perf_counter()
                assert score() == version
                took["first"].append(time.perf_counter() - asked)
            else:
                promote(root, name, version)
                while score() != version:
                    time.sleep(0.01)
            took[way].append(time.perf_counter() - started)
            asked = time.perf_counter()
            score()
            took["second"].append(time.perf_counter() - asked)
    return {
        way: {"median": statistics.median(seconds), "greatest": max(seconds)}
        for way, seconds in took.items()
    }


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swap_latency", description=__doc__)
    parser.add_argument("--swaps", type=int, default=10, help="of each model")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ |= {"OMP_WAIT_POLICY": "passive", "TQDM_DISABLE": "1"}
    torch.set_num_threads(1)
    told = {}
    with tempfile.TemporaryDirectory(prefix="rung-swap-latency-") as folder:
        root = Path(shutil.copytree(BUNDLED_MODELS, Path(folder) / "models"))
        add_large(root, Path(folder))
        versions = {name: make_versions(root, arguments.swaps, name) for name in (MODEL, LARGE)}
        port, server = start_server(
            Spec(kind="server", folder=str(root), dtype="float32", threads=1)
        )
        try:
            for name, names in versions.items():
                say(f"{name}: {len(names)} swaps")
                told[name] = first_answers(port, root, name, names)
        finally:
            server.terminate()
            server.wait(timeout=30)
    text = json.dumps(told, indent=1)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
