"""`rung eval search`, as a user types it, over tiny models."""

import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from prm.registry import load_version
from search.curves import Curves
from search.records import load, path_of
from tests.factories import POLICY, PRM
from tests.server import commands

STRATEGIES = "first-1,best-of-2,majority-2,best-of-8,beam-4x2,dvts-4x2"


def evaluate(*arguments: str | Path, prm: str = PRM) -> CompletedProcess[str]:
    options = ("--policy", POLICY, "--prm", prm, "--max-tokens", "12", *arguments)
    return commands.rung("eval", "search", *options, RUNG_THREADS="1", COLUMNS="150")


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_models, tmp_path / "models")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    lines = [{"problem": f"Evaluate {n}+{n}", "answer": str(2 * n)} for n in range(6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.slow
def test_every_strategy_is_measured_drawn_and_kept_for_auto(
    file: Path, models: Path, tmp_path: Path
) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.svg"
    options = ("--strategies", STRATEGIES, "--limit", "5", "--models", models)
    done = evaluate(file, *options, "--json", figures, "--picture", picture, "--write-curves")
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert (found["policy"], found["prm"], found["problems"]) == (POLICY, f"{PRM}@1", 5)
    assert found["is_complete"]
    points: dict[str, Any] = {point["label"]: point for point in found["points"]}
    assert set(points) == {
        "pass@1 1", "best of n 2", "majority 2", "best of n 8", "beam by weighted vote 4x2",
        "dvts by weighted vote 4x2",
    }  # fmt: skip
    for label, point in points.items():
        assert 0 < point["mean_tokens"]["value"] <= 8 * 12
        assert 0 <= point["accuracy"]["low"] <= point["accuracy"]["high"] <= 1
        assert (point["mean_read_tokens"] > 0) == (label not in ("pass@1 1", "majority 2"))
        assert label in done.stdout
    # Two of the same problem's first eight: the same candidates, a part of the tokens.
    assert points["best of n 2"]["mean_tokens"] == points["majority 2"]["mean_tokens"]
    assert "dvts" in picture.read_text()
    version = load_version(models / PRM / "1")
    curves = load(Curves, version, POLICY)
    assert curves is not None
    assert str(path_of(Curves, version, POLICY)) in done.stdout.replace("\n", "")
    assert [point.mean_tokens for point in curves.points] == [
        point["mean_tokens"]["value"] for point in found["points"]
    ]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures_and_another_one_others(
    file: Path, models: Path, tmp_path: Path
) -> None:
    def points(seed: int) -> list[dict[str, Any]]:
        figures = tmp_path / "figures.json"
        options = ("--strategies", "best-of-4,rebase-4", "--models", models, "--json", figures)
        done = evaluate(file, *options, "--seed", str(seed))
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(figures.read_text())["points"]
        return [{name: p[name] for name in p if name != "wall_s"} for p in found]

    assert points(1) == points(1) != points(2)


@pytest.mark.slow
def test_kept_outcomes_are_not_measured_again_and_join_new_ones(
    file: Path, models: Path, tmp_path: Path
) -> None:
    figures, kept = tmp_path / "figures.json", tmp_path / "outcomes.jsonl"

    def points(strategies: str, *options: str) -> dict[str, Any]:
        given = ("--strategies", strategies, "--models", models, "--json", figures)
        done = evaluate(file, *given, *options, "--outcomes", kept)
        assert done.returncode == 0, done.stderr
        return {point["label"]: point for point in json.loads(figures.read_text())["points"]}

    before = points("best-of-4,dvts-4x2", "--selections", "prm,majority")
    shared = ["best of n 4", "majority 4", "dvts by score 4x2", "dvts by majority 4x2"]
    assert list(before) == shared
    after = points("first-1,majority-4,dvts-4x2,best-of-4", "--selections", "majority,prm,weighted")
    assert list(after)[:2] == ["pass@1 1", "majority 4"]
    # The seconds are those of the first time.
    assert all(after[label] == point for label, point in before.items())
    assert (
        after["dvts by weighted vote 4x2"]["mean_tokens"]
        == (before["dvts by score 4x2"]["mean_tokens"])
    )
    lines = kept.read_text().splitlines()
    assert len(lines) == len(after)
    # Another seed is another measurement.
    assert list(points("majority-4", "--seed", "5")) == ["majority 4"]
    assert len(kept.read_text().splitlines()) == len(lines) + 1


@pytest.mark.slow
def test_what_is_through_is_reported_when_a_later_strategy_fails(
    file: Path, models: Path, tmp_path: Path
) -> None:
    figures, strategies = tmp_path / "figures.json", tmp_path / "strategies.json"
    strategies.write_text(json.dumps(["best-of-2", {"type": "beam", "aggregation": "fitted"}]))
    options = ("--strategies", strategies, "--models", models, "--json", figures)
    done = evaluate(file, *options, "--write-curves")
    assert done.returncode == 2
    assert "problems.jsonl, line 1: strategy.aggregation: " in done.stderr
    assert "broken off" in done.stdout
    found = json.loads(figures.read_text())
    assert [point["label"] for point in found["points"]] == ["best of n 2"]
    assert not found["is_complete"]
    # Half a measurement is nothing to choose by.
    assert load(Curves, load_version(models / PRM / "1"), POLICY) is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--strategies", "beem-4"), "'beem-4' is neither a file nor a strategy; there is "),
        (("--strategies", ",".join(["best-of-2"] * 99 + ["beem-4"])), "'beem-4' is neither"),
        (("--strategies", "beam-5x2"), "width 2 must divide n 5"),
        (("--strategies", "FILE"), "m: Extra inputs are not permitted"),
        (("--json", "nowhere/figures.json"), "there is no such folder"),
        (("--outcomes", "nowhere/kept.jsonl"), "--outcomes nowhere/kept.jsonl: there is no such"),
        (("--outcomes", "FILE"), "--outcomes FILE, line 1: "),
        (("--selections", "prm,best"), "'best' is no selection; there is first, prm, weighted"),
        (("--picture", "figures.txt"), "--picture figures.txt: name a file that ends in .svg"),
    ],
)
def test_bad_options_are_told_before_an_engine_starts(
    file: Path, tiny_models: Path, options: tuple[str, str], told: str
) -> None:
    bad = file.parent / "bad.json"
    bad.write_text('["best-of-2", {"type": "best_of_n", "n": 2, "m": 7}]')
    given = [str(bad) if option == "FILE" else option for option in options]
    done = evaluate(file, *given, "--models", tiny_models)
    assert done.returncode == 2
    assert told.replace("FILE", str(bad)) in done.stderr.replace("\n", "")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ("--strategies", "best-of-2,beam-4x2"),
            "best of n 2, beam by weighted vote 4x2 need a PRM",
        ),
        (("--strategies", "majority-2", "--write-curves"), "curves are of a policy and a PRM"),
    ],
)
def test_what_needs_a_prm_is_told_without_one(
    file: Path, tiny_models: Path, options: tuple[str, ...], told: str
) -> None:
    done = evaluate(file, *options, "--models", tiny_models, prm="none")
    assert done.returncode == 2
    assert told in done.stderr
