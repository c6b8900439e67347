"""`rung models promote | rollback | canary | shadow | versions`, in a folder."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prm.registry import Verdict, write_verdict
from server.cli import app
from tests.factories import PRM, publish_tiny_prm


@pytest.fixture(scope="module")
def two(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two") / "models"
    shutil.copytree(tiny_models, root)
    publish_tiny_prm(root, "2", seed=12, live=False)
    return root


@pytest.fixture
def root(two: Path, tmp_path: Path) -> Path:
    return shutil.copytree(two, tmp_path / "models")


def rung(root: Path, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["models", *arguments, f"--models={root}"])
    assert result.exit_code == code, result.output
    return result.output


def told(root: Path, *arguments: str) -> dict[str, Any]:
    return dict(json.loads(rung(root, *arguments, "--json")))


def test_a_version_is_promoted_and_rolled_back(root: Path) -> None:
    assert rung(root, "promote", PRM, "2") == f"{PRM}: live 2, before it 1\n"
    assert told(root, "rollback", PRM)["live"] == "1"
    assert "no previous version" in rung(root, "rollback", PRM, code=2)


def test_trials_begin_and_end(root: Path) -> None:
    words = rung(root, "canary", PRM, "2", "--fraction=0.25")
    assert words == f"{PRM}: live 1, canary 2 for 25% of callers\n"
    assert told(root, "canary", PRM, "none")["canary"] is None
    assert told(root, "shadow", PRM, "2")["shadow"] == {"version": "2", "fraction": 1.0}


def test_versions_are_listed_with_what_the_gate_said(root: Path) -> None:
    write_verdict(root, PRM, Verdict(version="2", passed=False, reason="F1 fell"))
    listed = told(root, "versions", PRM)["versions"]
    assert listed == [
        {"version": "1", "state": "live", "reason": None},
        {"version": "2", "state": "rejected", "reason": "F1 fell"},
    ]
    assert "rejected   F1 fell" in rung(root, "versions", PRM)
    assert "was rejected by its gate: F1 fell" in rung(root, "promote", PRM, "2", code=2)


def test_old_versions_are_removed_and_those_that_stay_say_why(root: Path) -> None:
    publish_copies(root, "3", "4")
    rung(root, "promote", PRM, "2")
    words = rung(root, "prune", PRM, "--keep=1", "--dry-run")
    assert words.splitlines() == [
        "           3  would be removed",
        "           1  stays: previous",
        "           2  stays: live",
        "           4  stays: newest",
    ]
    assert told(root, "prune", PRM, "--keep=1", "--older-than=1")["removed"] == []
    pruned = told(root, "prune", PRM, "--keep=1")
    assert (pruned["removed"], pruned["dry_run"]) == (["3"], False)
    versions = [each["version"] for each in told(root, "versions", PRM)["versions"]]
    assert versions == ["1", "2", "4"]
    rung(root, "prune", PRM, "--keep=0", code=2)


def publish_copies(root: Path, *versions: str) -> None:
    """All versions of the PRM were published some hours ago, one after the other."""
    for version in versions:
        folder = shutil.copytree(root / PRM / "2", root / PRM / version)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"version": version}))
    for version in ("1", "2", *versions):
        when = time.time() - 3600 * (12 - int(version))
        os.utime(root / PRM / version / "STABLE", (when, when))


@pytest.mark.parametrize("name", ["nope", "../models"])
def test_an_unknown_name_is_told(root: Path, name: str) -> None:
    assert "no model named" in rung(root, "promote", name, "1", code=2)
