"""Old versions go, but none that anyone needs; who reads or publishes meanwhile sees no half."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from prm.errors import UnknownModel
from prm.registry import (
    Verdict,
    promote,
    prune,
    published,
    read_verdict,
    reject,
    rollback,
    try_out,
)
from tests.factories import POLICY, PRM, publish_tiny_prm


@pytest.fixture(scope="module")
def old(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, and a PRM with eight versions that were published two hours ago and more."""
    root = tmp_path_factory.mktemp("retention") / "models"
    shutil.copytree(tiny_models, root)
    publish_tiny_prm(root, "2", seed=12, live=False)
    for version in map(str, range(3, 9)):
        _copy(root, PRM, "2", version)
    for number, version in enumerate(map(str, range(1, 9))):
        _written(root / PRM / version, hours_ago=10 - number)
    _written(root / POLICY / "1", hours_ago=10)
    return root


@pytest.fixture
def root(old: Path, tmp_path: Path) -> Path:
    return shutil.copytree(old, tmp_path / "models")


def _copy(root: Path, name: str, version: str, other: str) -> None:
    folder = shutil.copytree(root / name / version, root / name / other)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": other}))


def _written(folder: Path, *, hours_ago: float) -> None:
    when = time.time() - 3600 * hours_ago
    os.utime(folder / "STABLE", (when, when))


def test_what_serves_what_can_be_gone_back_to_and_the_newest_stay(root: Path) -> None:
    for version in ("2", "3", "4"):
        promote(root, PRM, version)
    try_out(root, PRM, "canary", "5", 0.5)
    pruned = prune(root, PRM, keep=2)
    assert pruned.removed == ("1", "6")
    assert pruned.kept == {
        "2": "previous",
        "3": "previous",
        "4": "live",
        "5": "canary",
        "7": "newest",
        "8": "newest",
    }
    assert published(root, PRM) == ["2", "3", "4", "5", "7", "8"]
    assert rollback(root, PRM).live == "3"
    # What was gone back from is a version like any other.
    assert prune(root, PRM, keep=2).removed == ("4",)


def test_one_to_go_back_to_stays_whatever_is_asked(root: Path) -> None:
    promote(root, PRM, "8")
    assert prune(root, PRM, keep=1).kept == {"1": "previous", "8": "live"}


def test_young_versions_and_those_in_use_stay(root: Path) -> None:
    _written(root / PRM / "3", hours_ago=0.9)
    pruned = prune(root, PRM, keep=1, held={f"{PRM}@4", "other@5"})
    # The newest is the one that was published last, whatever it is called.
    assert pruned.kept == {"1": "live", "4": "in use", "3": "young"}
    assert prune(root, PRM, keep=1, older_than_s=0).kept == {"1": "live", "3": "young"}


def test_a_reference_stays_for_as_long_as_a_version_of_any_name_needs_it(root: Path) -> None:
    for version in ("2", "3"):
        _copy(root, POLICY, "1", version)
        _written(root / POLICY / version, hours_ago=9)
    promote(root, POLICY, "3")
    promote(root, POLICY, "2")
    promote(root, POLICY, "3")
    assert prune(root, POLICY, keep=1).kept == {"1": "reference", "2": "previous", "3": "live"}
    shutil.rmtree(root / PRM)
    assert prune(root, POLICY, keep=1).removed == ("1",)


def test_a_dry_run_removes_nothing_and_says_the_same(root: Path) -> None:
    would = prune(root, PRM, keep=3, dry_run=True)
    assert len(published(root, PRM)) == 8
    assert prune(root, PRM, keep=3) == would
    assert len(published(root, PRM)) == 8 - len(would.removed) == 4


def test_a_rejected_version_goes_and_its_verdict_stays(root: Path) -> None:
    reject(root, PRM, Verdict(version="2", passed=False, reason="F1 fell"))
    assert "2" in prune(root, PRM, keep=1).removed
    verdict = read_verdict(root, PRM, "2")
    assert verdict is not None
    assert verdict.reason == "F1 fell"


@pytest.mark.parametrize("name", ["nope", "..", "../models", ""])
def test_a_name_that_is_not_there_is_told_and_no_folder_made(root: Path, name: str) -> None:
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(UnknownModel, match="no model named"):
        prune(root, name, keep=1)
    assert sorted(root.parent.rglob("*")) == before


def test_what_a_killed_pruner_left_is_removed_by_the_next(root: Path) -> None:
    left = root / PRM / ".publish-left" / "7"
    left.parent.mkdir()
    (root / PRM / "7").rename(left)
    assert "7" not in published(root, PRM)
    prune(root, PRM, keep=8)
    assert not left.parent.exists()
