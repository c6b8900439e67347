"""Which version answers for a name: promoted, rolled back, shared with a canary, never torn."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prm.errors import Conflict, InvalidInput, UnknownModel
from prm.registry import (
    Pointer,
    Registry,
    Trial,
    Verdict,
    promote,
    published,
    read_pointer,
    reject,
    rollback,
    try_out,
    write_verdict,
)
from tests.factories import PRM, publish_tiny_prm


@pytest.fixture(scope="module")
def three(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PRM with three versions, the first of them live."""
    root = tmp_path_factory.mktemp("three") / "models"
    shutil.copytree(tiny_models, root)
    for version in ("2", "3"):
        publish_tiny_prm(root, version, seed=int(version) + 10, live=False)
    return root


@pytest.fixture
def root(three: Path, tmp_path: Path) -> Path:
    return shutil.copytree(three, tmp_path / "models")


def test_what_was_live_is_gone_back_to_one_by_one(root: Path) -> None:
    assert read_pointer(root, PRM) == Pointer(live="1")
    promote(root, PRM, "2")
    assert promote(root, PRM, "3") == Pointer(live="3", previous=("2", "1"))
    assert rollback(root, PRM) == Pointer(live="2", previous=("1",))
    assert rollback(root, PRM) == Pointer(live="1")
    with pytest.raises(Conflict, match=f"{PRM} has no previous version"):
        rollback(root, PRM)
    assert read_pointer(root, PRM) == Pointer(live="1")


def test_a_version_that_is_promoted_again_is_previous_no_longer(root: Path) -> None:
    for version in ("2", "3", "2", "2"):
        promote(root, PRM, version)
    assert read_pointer(root, PRM) == Pointer(live="2", previous=("3", "1"))


def test_a_version_takes_the_place_of_that_alone_which_it_was_held_against(root: Path) -> None:
    promote(root, PRM, "2", over="1")
    with pytest.raises(Conflict, match=f"{PRM}@3 was compared with 1, and 2 is live by now"):
        promote(root, PRM, "3", over="1")
    assert promote(root, PRM, "2", over="1") == Pointer(live="2", previous=("1",))


def test_rollback_passes_over_a_version_that_was_removed(root: Path) -> None:
    promote(root, PRM, "2")
    promote(root, PRM, "3")
    shutil.rmtree(root / PRM / "2")
    assert rollback(root, PRM) == Pointer(live="1")


def test_a_canary_lasts_until_it_is_ended_or_promoted(root: Path) -> None:
    canary = Trial(version="2", fraction=0.25)
    assert try_out(root, PRM, "canary", "2", 0.25) == Pointer(live="1", canary=canary)
    assert {v.key for v in Registry.open(root)} >= {f"{PRM}@1", f"{PRM}@2"}
    assert promote(root, PRM, "3").canary == canary
    assert promote(root, PRM, "2") == Pointer(live="2", previous=("3", "1"))
    try_out(root, PRM, "canary", "3", 0.5)
    assert try_out(root, PRM, "canary", None) == Pointer(live="2", previous=("3", "1"))


def test_what_its_gate_rejected_never_serves(root: Path) -> None:
    write_verdict(root, PRM, Verdict(version="2", passed=False, reason="F1 fell by 0.2"))
    write_verdict(root, PRM, Verdict(version="3", passed=True))
    with pytest.raises(Conflict, match=f"{PRM}@2 was rejected by its gate: F1 fell by 0.2"):
        promote(root, PRM, "2")
    with pytest.raises(Conflict, match="rejected"):
        try_out(root, PRM, "canary", "2", 0.1)
    assert promote(root, PRM, "3").live == "3"


@pytest.mark.parametrize("name", ["nope", "..", "../models", "/etc", "", "."])
def test_an_unknown_name_is_looked_up_and_never_a_path(root: Path, name: str) -> None:
    with pytest.raises(UnknownModel, match="no model named"):
        promote(root, name, "1")
    with pytest.raises(UnknownModel):
        published(root, name)


@pytest.mark.parametrize("version", ["9", "../1", "1/../2", ""])
def test_an_unknown_version_is_named_beside_those_there_are(root: Path, version: str) -> None:
    with pytest.raises(UnknownModel, match="it has 1, 2, 3"):
        promote(root, PRM, version)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 2.0, -0.5, float("nan")])
def test_a_canary_answers_a_share(root: Path, fraction: float) -> None:
    with pytest.raises(InvalidInput, match="a share of the callers above 0"):
        try_out(root, PRM, "canary", "2", fraction)


def test_a_shadow_may_see_every_request_and_ends_when_it_is_rejected(root: Path) -> None:
    pointer = try_out(root, PRM, "shadow", "2", 1.0)
    assert pointer.served == ("1", "2")
    try_out(root, PRM, "canary", "3", 0.5)
    reject(root, PRM, Verdict(version="2", passed=False, reason="too slow"))
    assert read_pointer(root, PRM) == Pointer(live="1", canary=Trial(version="3", fraction=0.5))
    with pytest.raises(Conflict, match="too slow"):
        try_out(root, PRM, "shadow", "2", 1.0)


def test_a_canary_is_not_what_is_live(root: Path) -> None:
    with pytest.raises(Conflict, match="live already"):
        try_out(root, PRM, "canary", "1", 0.5)


def test_pointers_that_many_processes_change_at_once_are_changed_one_by_one(root: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from prm.registry import promote\n"
        "for _ in range(20): promote(Path(sys.argv[1]), sys.argv[2], sys.argv[3])"
    )
    running = [
        subprocess.Popen([sys.executable, "-P", "-c", code, str(root), PRM, version])
        for version in ("1", "2", "3")
    ]
    seen = set()
    while any(process.poll() is None for process in running):
        pointer = read_pointer(root, PRM)
        seen.add(pointer.live)
        assert pointer.live not in pointer.previous
        assert len(set(pointer.previous)) == len(pointer.previous)
    assert [process.returncode for process in running] == [0, 0, 0]
    assert {read_pointer(root, PRM).live, *read_pointer(root, PRM).previous} == {"1", "2", "3"}


def test_the_first_promotion_begins_a_pointer(root: Path) -> None:
    (root / PRM / "live.json").unlink()
    assert promote(root, PRM, "2") == Pointer(live="2")
