"""A version takes the live one's place through `rung models gate`, or is refused with a reason."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from prm.chat import ChatTokenizer
from prm.engine.golden import golden_raw
from prm.engine.model import CausalLM
from prm.manifest import ModelVersion, PrmManifest
from prm.registry import Registry, publish, read_pointer, read_verdict
from server.cli import app
from server.settings import BUNDLED_MODELS
from training.tasks.arithmetic_task import Arithmetic

pytestmark = pytest.mark.slow
NAME = "rung-arith-prm"


def publish_noisy(root: Path, version: str, noise: float, tmp: Path) -> None:
    """The bundled PRM with noise on every weight; its golden scores are its own."""
    registry = Registry.open(root)
    base = registry.get(NAME)
    assert base is not None
    assert isinstance(base.manifest, PrmManifest)
    (policy,) = registry.references_of(base)
    staged = tmp / version
    shutil.copytree(base.folder, staged)
    draw = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor + noise * tensor.std() * torch.randn(tensor.shape, generator=draw)
        for name, tensor in load_file(staged / "model.safetensors").items()
    }
    save_file(tensors, staged / "model.safetensors", metadata={"format": "pt"})
    manifest = base.manifest.model_copy(update={"version": version})
    draft = ModelVersion(staged, manifest)
    models = {v.key: CausalLM.load(v.folder) for v in (draft, policy)}
    golden = tuple(
        one.model_copy(update={"raw": tuple(golden_raw(draft, ChatTokenizer(staged), models, one))})
        for one in manifest.golden
    )
    publish(root, staged, manifest.model_copy(update={"golden": golden}), live=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled models, a version that hardly differs, and one that was damaged."""
    root = tmp_path_factory.mktemp("gate") / "models"
    shutil.copytree(BUNDLED_MODELS, root)
    publish_noisy(root, "near", 0.001, tmp_path_factory.mktemp("near"))
    publish_noisy(root, "damaged", 0.5, tmp_path_factory.mktemp("damaged"))
    return root


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Solutions of arithmetic problems with slips, and where their first error is."""
    task, rng = Arithmetic(slip_probability=0.15), random.Random(0)
    path = tmp_path_factory.mktemp("held-out") / "responses.jsonl"
    lines = []
    for problem in task.problems(5, 40, "test"):
        for _ in range(4):
            response = task.solution(problem, rng)
            error = task.first_error(problem, response)
            lines.append(
                {
                    "problem": problem.text,
                    "response": response,
                    "first_error": error,
                    "correct": task.is_correct(problem, response),
                }
            )
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def gate(root: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["models", "gate", *arguments, f"--models={root}", "--json"])
    assert result.exit_code == code, result.output
    told = result.output.strip().splitlines()[-1]
    return dict(json.loads(told)) if told.startswith("{") else {"error": told}


@pytest.mark.parametrize("metric", ["first_error_f1", "best_of_n"])
def test_a_damaged_version_is_refused_and_keeps_its_report(
    root: Path, held_out: Path, metric: str
) -> None:
    told = gate(root, NAME, "damaged", str(held_out), f"--metric={metric}", "--decide", code=1)
    assert not told["passed"]
    assert told["new"]["figure"]["value"] < told["live"]["figure"]["value"]
    assert any(f"{metric} 0." in reason for reason in told["reasons"])
    verdict = read_verdict(root, NAME, "damaged")
    assert verdict is not None
    assert not verdict.passed
    assert verdict.report["metric"] == metric
    assert read_pointer(root, NAME).live == "1"
    (root / NAME / "gate" / "damaged.json").unlink()


def test_a_version_that_is_as_good_passes_and_goes_live(root: Path, held_out: Path) -> None:
    told = gate(root, NAME, "near", str(held_out), "--metric=first_error_f1", "--margin=0.1")
    assert told["passed"]
    assert told["live"]["figure"]["value"] > 0.7
    assert read_pointer(root, NAME).live == "1"
    gate(root, NAME, "near", str(held_out), "--metric=auroc", "--margin=0.1", "--decide")
    assert read_pointer(root, NAME).live == "near"
    again = gate(root, NAME, "near", str(held_out), code=2)
    assert "live already" in again["error"]


def test_labels_that_are_missing_are_asked_for(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text(json.dumps({"problem": "Evaluate 1+2", "steps": ["1+2=3"]}) + "\n")
    told = gate(root, NAME, "damaged", str(path), "--metric=auroc", code=2)
    assert "auroc needs held-out responses" in told["error"]
    assert "has no version" in gate(root, NAME, "none", str(path), code=2)["error"]
