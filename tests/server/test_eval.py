"""`rung eval`, as a user types it."""

import json
import random
import shutil
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from prm.calibration_files import CalibrationFolder, file_of
from prm.registry import load_version
from tests.factories import POLICY, PRM
from tests.server import commands
from tests.server.conftest import RunningServer

POOL = Path(__file__).parents[3] / "shared/data/bestofn/pool_math500/pool_rows_000_099.jsonl.gz"


def rung(*arguments: str | Path) -> CompletedProcess[str]:
    return commands.rung("eval", *arguments, RUNG_THREADS="1")


def rows(*, problems: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Labelled responses with recorded scores; a step is right as often as its score squared."""
    rng = random.Random(seed)
    made = []
    for number in range(problems):
        for _ in range(3):
            steps = [f"{number}+{rng.randrange(9)}=1" for _ in range(rng.randrange(1, 5))]
            scores = [round(rng.random(), 3) for _ in steps]
            labels = [rng.random() < score**2 for score in scores]
            made.append(
                {
                    "problem": f"Evaluate {number}",
                    "steps": steps,
                    "labels": labels,
                    "correct": all(labels),
                    "step_scores": scores,
                }
            )
    return made


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "labelled.jsonl", rows())


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_models, tmp_path / "models")


def test_calibrate_scores_with_an_engine_and_keeps_what_a_server_then_loads(
    file: Path, models: Path
) -> None:
    done = rung("calibrate", file, "--policy", POLICY, "--models", models)
    assert done.returncode == 0, done.stderr
    version = load_version(models / PRM / "1")
    (record,) = CalibrationFolder(version).by_policy.values()
    assert str(file_of(version, POLICY)) in done.stdout.replace("\n", "")
    assert record.prm == version.ref
    assert record.command == (
        f"rung eval calibrate {file} --policy {POLICY} --method isotonic --holdout 0.3"
    )
    assert (record.fitted.problems, record.held_out.counts.problems) == (17, 7)
    assert record.fitted.steps + record.held_out.counts.steps == sum(
        len(row["steps"]) for row in rows()
    )
    assert record.held_out.steps is not None
    assert record.held_out.responses is not None
    for word in ("ECE", "Brier score", "log loss", "0.9-1.0", "logit_min"):
        assert word in done.stdout


@pytest.mark.slow
def test_a_server_scores_as_an_engine_of_its_own_does(
    file: Path, models: Path, server: RunningServer
) -> None:
    here = rung("calibrate", file, "--models", models, "--dry-run", "--json")
    options = ("--url", server.url, "--models", models, "--policy", "org/p-7b", "--json")
    there = rung("calibrate", file, *options)
    assert there.returncode == here.returncode == 0, there.stderr + here.stderr
    ours, theirs = json.loads(here.stdout), json.loads(there.stdout)
    assert ours["path"] is None
    assert Path(theirs["path"]).name == "org%2Fp-7b.json"
    measured = [part["fit"]["held_out"]["steps"]["before"]["brier"] for part in (ours, theirs)]
    assert measured[0]["value"] == pytest.approx(measured[1]["value"], abs=1e-4)


def test_recorded_scores_need_no_model_and_the_planted_relation_is_found(tmp_path: Path) -> None:
    file = write(tmp_path / "many.jsonl", rows(problems=400))
    done = rung("calibrate", file, "--recorded", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    held_out = json.loads(done.stdout)["fit"]["held_out"]
    change = held_out["steps"]["change"]
    assert all(change[figure]["high"] < 0 for figure in ("ece", "brier", "log_loss"))
    # ∫ s − s² ds: what calling a chance of s² a chance of s is off by.
    assert held_out["steps"]["before"]["ece"]["value"] == pytest.approx(1 / 6, abs=0.04)
    assert held_out["steps"]["after"]["ece"]["value"] < 0.07


def test_reliability_measures_what_is_there_and_fits_nothing(file: Path, models: Path) -> None:
    none = rung("reliability", file, "--recorded", "--model", PRM, "--models", models)
    assert none.returncode == 2
    assert "rung eval calibrate" in none.stderr
    options = ("--recorded", "--model", PRM, "--models", models)
    assert rung("calibrate", file, *options, "--policy", "p").returncode == 0
    before = file_of(load_version(models / PRM / "1"), "p").read_bytes()
    done = rung("reliability", file, *options, "--json")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["policy"] == "p"
    assert measured["measured"]["counts"]["problems"] == 24
    assert file_of(load_version(models / PRM / "1"), "p").read_bytes() == before
    other = rung("reliability", file, *options, "--policy", "q")
    assert other.returncode == 2
    assert "calibrations for: p" in other.stderr


@pytest.mark.slow
def test_the_same_data_and_seed_give_the_same_calibration(file: Path, tmp_path: Path) -> None:
    options = ("--recorded", "--dry-run", "--json", "--method", "platt")
    lines = file.read_text().splitlines(keepends=True)
    once = json.loads(rung("calibrate", file, *options).stdout)
    assert json.loads(rung("calibrate", file, *options).stdout) == once
    (tmp_path / "shuffled.jsonl").write_text("".join(reversed(lines)))
    shuffled = json.loads(rung("calibrate", tmp_path / "shuffled.jsonl", *options).stdout)
    assert shuffled["fit"]["fitted"] == once["fit"]["fitted"]
    slope = once["fit"]["steps"]["slope"]
    assert shuffled["fit"]["steps"]["slope"] == pytest.approx(slope, rel=1e-6)
    other = json.loads(rung("calibrate", file, *options, "--seed", "1").stdout)
    assert other["fit"]["steps"]["slope"] != slope


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_picture_is_drawn(file: Path, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib", reason="pictures come with the extra 'train'")
    picture = tmp_path / f"reliability{suffix}"
    done = rung("calibrate", file, "--recorded", "--dry-run", "--plot", picture)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes()[:4] in (b"<?xm", b"\x89PNG")


GOOD = {"problem": "p", "steps": ["a", "b"], "step_scores": [0.5, 0.5]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**GOOD, "labels": [True]}, "line 1: 1 labels for 2 steps"),
        ({**GOOD, "labels": [1, 0]}, "line 1: labels.0"),
        ({**GOOD, "labels": [True, None], "first_error": 1}, "either labels or first_error"),
        ({**GOOD, "first_error": 2}, "first_error 2 of 2 steps; it is counted from 0"),
        ({**GOOD, "first_error": -2}, "line 1: first_error"),
        ({**GOOD, "correct": "yes"}, "line 1: correct"),
        ({**GOOD, "step_scores": [0.5, 1.5]}, "line 1: step_scores.1"),
        ({**GOOD, "step_scores": []}, "line 1: step_scores"),
        ({"problem": "p", "steps": ["a"], "correct": True}, "line 1: holds no step_scores"),
        ({"steps": ["a"]}, "either problem or messages"),
        ({"problem": "p", "candidates": [GOOD, 3]}, "line 1, candidates[1]: not a JSON object"),
        (GOOD, "no response has a label"),
        ({**GOOD, "labels": [True, False]}, "1 different problems"),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong(
    tmp_path: Path, line: dict[str, Any], message: str
) -> None:
    file = write(tmp_path / "bad.jsonl", [line])
    done = rung("calibrate", file, "--recorded", "--dry-run")
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--recorded",), "--policy"),
        (("--recorded", "--policy", "../x"), "--policy '../x'"),
        (("--recorded", "--policy", "p"), "--model"),
        (("--recorded", "--policy", "p", "--model", "nobody"), "there is tiny-prm@1"),
        (("--recorded", "--policy", "p", "--model", POLICY), "there is tiny-prm@1"),
        (("--recorded", "--dry-run", "--plot", "x.gif"), ".svg"),
        (("--recorded", "--dry-run", "--holdout", "2"), "holdout"),
        (("--recorded", "--dry-run", "--method", "magic"), "method"),
    ],
)
def test_bad_usage_ends_with_two_and_the_remedy(
    file: Path, tiny_models: Path, options: tuple[str, ...], message: str
) -> None:
    done = rung("calibrate", file, *options, "--models", tiny_models)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tiny_models / PRM / "calibration").exists()


def test_labels_that_are_all_alike_cannot_be_fitted(tmp_path: Path) -> None:
    alike = [{**row, "labels": [True] * len(row["steps"]), "correct": None} for row in rows()]
    done = rung("calibrate", write(tmp_path / "a.jsonl", alike), "--recorded", "--dry-run")
    assert done.returncode == 2
    assert "labels are alike" in done.stderr


def test_a_line_that_the_server_refuses_is_named_by_its_line(
    tmp_path: Path, server: RunningServer
) -> None:
    lines = rows()
    lines[40]["steps"] = ["x" * 5000]
    file = write(tmp_path / "long.jsonl", lines)
    done = rung("calibrate", file, "--dry-run", "--url", server.url)
    assert done.returncode == 2
    assert "line 41" in done.stderr


def test_a_server_with_other_weights_is_no_source_for_this_folder(
    file: Path, models: Path, server: RunningServer
) -> None:
    manifest = models / PRM / "1" / "manifest.json"
    shutil.rmtree(models / PRM)
    done = rung("calibrate", file, "--url", server.url, "--models", models, "--policy", "p")
    assert done.returncode == 2
    assert "--models" in done.stderr
    assert not manifest.exists()


@pytest.mark.slow
@pytest.mark.skipif(not POOL.exists(), reason="the pool of MATH-500 candidates is not here")
def test_aggregations_on_a_real_pool() -> None:
    done = rung("aggregations", POOL, "--recorded", "--json")
    assert done.returncode == 0, done.stderr
    found = {r["aggregation"]: r for r in json.loads(done.stdout)["rankings"]}
    assert set(found) == {"min", "last", "mean", "product", "max", "sum", "fitted"}
    assert found["product"]["auroc"]["value"] == pytest.approx(0.88, abs=0.005)
    assert found["fitted"]["auroc"]["value"] > found["min"]["auroc"]["value"]
