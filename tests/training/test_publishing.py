"""What runs have trained is published, served, and read there as the trainer read it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import load_file, save_file

from prm.errors import InvalidInput
from prm.manifest import PrmManifest
from prm.registry import load_version
from tests.imports import quiet
from tests.server.commands import rung
from tests.server.conftest import rung_serve
from tests.training.jobs import small_job
from training.publishing import Published, PublishRequest, publish_run
from training.run import run_job
from training.served import GOLDEN_PRM
from training.spec import TrainingJob

RUNS: dict[str, dict[str, Any]] = {
    "implicit": {"type": "implicit_prm", "beta": 0.5},
    "prime": {"type": "prime", "beta": 0.5, "filter": {"low": 0, "high": 1}},
    "repirl": {"type": "repirl"},
    "head": {"type": "repirl", "read_out": "head"},
    "steps": {"type": "step_bce"},
    "prefixes": {"type": "step_bce", "read_out": "log_ratio", "beta": 0.5},
}
FAMILIES = {"head": ("repirl", "repirl-actions"), "steps": ("token_head", "trl")}


def published(run: Path, root: Path, **options: Any) -> list[Published]:
    return publish_run(PublishRequest(run=run, root=root, **options), quiet)


def raw_scores(http: httpx2.Client, model: str, items: list[dict[str, Any]]) -> list[list[float]]:
    asked = [{"problem": item["problem"], "steps": item["steps"]} for item in items]
    answer = http.post("/v1/prm/score", json={"model": model, "items": asked, "include": ["raw"]})
    assert answer.status_code == 200, answer.text
    return [[step["raw"] for step in item["steps"]] for item in answer.json()["data"]]


def assert_steers(http: httpx2.Client, prm: str) -> None:
    """A search of the policy that all runs began with is ranked by this PRM."""
    asked = {
        "policy": "implicit-reference",
        "prm": prm,
        "problem": "1234=",
        "strategy": {"type": "best_of_n", "n": 4},
        "sampling": {"max_tokens": 5, "seed": 1},
    }
    answer = http.post("/v1/search", json=asked)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["prm"] == prm
    assert told["usage"]["scored_tokens"] > 0
    assert told["score"] is not None


@pytest.mark.slow
def test_prms_of_every_kind_are_served_with_the_scores_that_training_gave_them(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    root = tmp_path / "models"
    for name, algorithm in RUNS.items():
        job = job_of(algorithm, name=name, optimizer={"lr": 3e-3})
        run_job(job, tmp_path / name)
        done = published(tmp_path / name, root)
        roles = {one.role: one.key for one in done}
        assert roles["prm"] == f"{name}-prm@1"
        assert ("policy" in roles) == (algorithm["type"] in ("prime", "repirl"))
        # All runs begin with one policy: it is published once.
        assert roles.get("reference", "implicit-reference@1") == "implicit-reference@1"
        manifest = load_version(root / f"{name}-prm" / "1").manifest
        assert isinstance(manifest, PrmManifest)
        family, recipe = FAMILIES.get(name, ("implicit", "implicit"))
        assert (manifest.family, manifest.recipe["name"]) == (family, recipe)
        assert manifest.training["algorithm"] == job.algorithm.model_dump(mode="json")
    seen: list[float] = []
    with rung_serve(root) as server, httpx2.Client(base_url=server.url, timeout=60) as http:
        for name in RUNS:
            text = (tmp_path / name / GOLDEN_PRM).read_text()
            items = [json.loads(line) for line in text.splitlines()]
            for found, item in zip(raw_scores(http, f"{name}-prm", items), items, strict=True):
                assert found == pytest.approx(item["raw"], abs=1e-4)
                seen += found
            assert_steers(http, f"{name}-prm")
    assert max(seen) - min(seen) > 0.05, "scores that are all alike would prove nothing"


@pytest.mark.slow
def test_a_run_is_published_from_the_command_line_and_not_twice(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    root = tmp_path / "models"
    run_job(job_of(RUNS["prime"], steps=1), tmp_path / "run")
    done = rung("models", "publish", tmp_path / "run", "--name", "sums", "--models", root, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["published"]
    assert {(one["role"], one["key"]) for one in told} == {
        ("reference", "sums-reference@1"), ("policy", "sums-policy@1"), ("prm", "sums-prm@1")
    }  # fmt: skip
    again = rung("models", "publish", tmp_path / "run", "--name", "sums", "--models", root)
    assert again.returncode == 2
    assert "sums-policy@1 is already published" in again.stderr
    next_one = rung(
        "models", "publish", tmp_path / "run", "--name", "sums", "--models", root, "--version", "2",
        COLUMNS="150",
    )  # fmt: skip
    assert next_one.returncode == 0, next_one.stderr
    assert "reference  sums-reference@1, was there before" in next_one.stdout
    assert "prm        sums-prm@2, live, implicit/1" in next_one.stdout


@pytest.fixture(scope="module")
def done(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a head over actions, which needs no reference."""
    run = tmp_path_factory.mktemp("done") / "run"
    run_job(small_job(policy, RUNS["head"], train_policy=False, steps=1), run)
    return run


def test_weights_that_are_not_the_trained_ones_are_refused(done: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done, tmp_path / "run"))
    weights = load_file(run / "prm" / "model.safetensors")
    weights["score.bias"] = weights["score.bias"] + torch.linspace(0, 1, len(weights["score.bias"]))
    save_file(weights, run / "prm" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InvalidInput, match=r"golden-prm\.jsonl, line 1: raw\[\d\] is expected to be"
    ):
        published(run, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_what_is_no_run_that_is_done_is_refused(done: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"job\.json: No such file.*folder of a run"):
        published(tmp_path, tmp_path / "models")
    run = Path(shutil.copytree(done, tmp_path / "run"))
    (run / GOLDEN_PRM).unlink()
    with pytest.raises(InvalidInput, match="nothing has a step"):
        published(run, tmp_path / "models")
    shutil.rmtree(run / "prm")
    with pytest.raises(InvalidInput, match="holds neither policy/ nor prm/: the run is not done"):
        published(run, tmp_path / "models")


def test_a_reference_that_is_gone_can_be_named(
    job_of: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    run_job(job_of(RUNS["implicit"], steps=1), tmp_path / "run")
    job = json.loads((tmp_path / "run" / "job.json").read_text())
    (tmp_path / "run" / "job.json").write_text(json.dumps(job | {"policy": "gone"}))
    with pytest.raises(InvalidInput, match=r"gone, the reference of this run by its job\.json"):
        published(tmp_path / "run", tmp_path / "models")
    with pytest.raises(InvalidInput, match="'x' is not NAME@VERSION"):
        published(tmp_path / "run", tmp_path / "models", reference="x")
