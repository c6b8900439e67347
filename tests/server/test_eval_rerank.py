"""`rung eval rerank`, as a user types it."""

import json
import random
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from prm.registry import load_version
from search.records import load
from search.selection import SelectionRecord
from tests.factories import POLICY, PRM
from tests.server import commands


def rung(*arguments: str | Path) -> CompletedProcess[str]:
    return commands.rung("eval", "rerank", *arguments, COLUMNS="200")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    rng = random.Random(0)
    lines = []
    for number in range(20):
        candidates = []
        for _ in range(6):
            right = rng.random() < 0.5
            scores = [round(min(1.0, rng.random() * (1.2 if right else 0.7)), 3) for _ in range(3)]
            answer = "7" if right else rng.choice(["1", "2", None])
            candidates.append(
                {"step_scores": scores, "extracted": answer, "correct": right, "tokens": 9}
            )
        lines.append({"problem": f"problem {number}", "candidates": candidates})
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_it_prints_draws_and_keeps(tiny_models: Path, pool: Path, tmp_path: Path) -> None:
    models = shutil.copytree(tiny_models, tmp_path / "models")
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.svg"
    done = rung(
        pool, "--folds", "4", "--orders", "3", "--json", figures, "--picture", picture,
        "--model", PRM, "--policy", POLICY, "--models", models,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "20 problems, 120 candidates, 54 tokens a problem" in done.stdout
    assert "calibrated minus weighted by last" in done.stdout
    found = json.loads(figures.read_text())
    oracle = next(curve for curve in found["curves"] if curve["label"] == "oracle")
    lines = [json.loads(line) for line in pool.read_text().splitlines()]
    solvable = sum(any(c["correct"] for c in line["candidates"]) for line in lines)
    assert oracle["recorded"]["value"] == solvable / 20
    assert picture.read_text().startswith("<?xml")
    record = load(SelectionRecord, load_version(models / PRM / "1"), POLICY)
    assert record is not None
    calibrated = next(curve for curve in found["curves"] if curve["label"] == "calibrated")
    assert record.accuracy["calibrated"].value == calibrated["recorded"]["value"]
    assert record.selector.probability([0.9, 0.9]) > record.selector.probability([0.1, 0.1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--picture", "x.gif"], "name a file that ends in .svg"),
        (["--json", "/nowhere/x.json"], "--json /nowhere/x.json: there is no such folder"),
        (["--model", "m"], "--model and --policy: give both"),
        (["--model", "m", "--policy", " "], "--policy ' '"),
        (["--folds", "1"], "'--folds': "),
        (["--budget", "0"], "'--budget': "),
    ],
)
def test_bad_options_are_refused_in_words(pool: Path, arguments: list[str], message: str) -> None:
    done = rung(pool, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    done = rung(tmp_path / "none.jsonl")
    assert done.returncode == 2
    assert f"{tmp_path / 'none.jsonl'}: cannot be read" in done.stderr
