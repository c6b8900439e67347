"""Calibration records: on disk beside their version, and refused when they are not of it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prm.calibration import Calibration, IsotonicMap
from prm.calibration_files import CalibrationFolder, file_of, save
from prm.errors import ModelFolderError
from prm.registry import Registry, load_version
from tests.factories import PRM, calibration_of


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_models, tmp_path / "models")


def test_a_record_comes_back_as_it_was_saved_and_replaces_an_older_one(models: Path) -> None:
    version = load_version(models / PRM / "1")
    first = calibration_of(version, policy="org/policy-7b")
    path = save(version, first)
    assert path == models / PRM / "calibration" / "1" / "org%2Fpolicy-7b.json"
    assert CalibrationFolder(version).by_policy == {"org/policy-7b": first}
    second = first.model_copy(update={"created": first.created + 1})
    save(version, second)
    other = save(version, calibration_of(version, policy="another"))
    assert CalibrationFolder(version).by_policy["org/policy-7b"] == second
    assert {file.name for file in path.parent.iterdir()} == {path.name, other.name}
    registry = Registry.open(models)
    assert set(registry.calibrations(version).by_policy) == {"org/policy-7b", "another"}


def test_without_a_folder_there_is_none(models: Path) -> None:
    version = load_version(models / PRM / "1")
    assert Registry.open(models).calibrations(version).by_policy == {}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"prm.weights_sha256": "0" * 64}, "with the weights 000000000000…"),
        ({"prm.version": "2"}, "was fitted to tiny-prm@2"),
        ({"policy": "somebody-else"}, "policy 'somebody-else'"),
        ({"steps.probabilities": [0.5, 0.1]}, "must not decrease"),
        ({"steps.scores": [0.5, 0.5]}, "scores must increase"),
        ({"steps.probabilities": [0.1, float("nan")]}, "field steps.isotonic.probabilities.1"),
        ({"steps.probabilities": [0.1]}, "2 scores and 1 probabilities"),
        ({"response.terms": []}, "field response.terms"),
        ({"surprise": 1}, "field surprise"),
        ({"steps": None, "response": None}, "neither steps nor response"),
    ],
)
def test_a_record_that_is_not_of_its_version_or_broken_names_the_file(
    models: Path, damage: dict[str, Any], message: str
) -> None:
    version = load_version(models / PRM / "1")
    path = save(version, calibration_of(version, policy="p"))
    record = json.loads(path.read_text())
    for field, value in damage.items():
        *parents, last = field.split(".")
        part = record
        for name in parents:
            part = part[name]
        part[last] = value
    path.write_text(json.dumps(record))
    with pytest.raises(ModelFolderError) as refusal:
        Registry.open(models)
    assert refusal.value.path == path
    assert message in str(refusal.value)
    assert "rung eval calibrate" in str(refusal.value)


def test_half_a_file_is_refused_by_name(models: Path) -> None:
    version = load_version(models / PRM / "1")
    path = save(version, calibration_of(version, policy="p"))
    path.write_text(path.read_text()[:200])
    with pytest.raises(ModelFolderError, match="not valid JSON") as refusal:
        Registry.open(models)
    assert refusal.value.path == path


def test_a_draft_left_by_a_crash_is_nobodys_calibration(models: Path) -> None:
    version = load_version(models / PRM / "1")
    path = save(version, calibration_of(version, policy="p"))
    (path.parent / ".123.draft").write_text("{")
    assert set(CalibrationFolder(version).by_policy) == {"p"}


def test_a_folder_knows_when_to_read_again_and_takes_what_is_new(models: Path) -> None:
    version = load_version(models / PRM / "1")
    folder = CalibrationFolder(version)
    assert not folder.has_changed()
    first = calibration_of(version, policy="p")
    path = save(version, first)
    assert folder.has_changed()
    assert folder.by_policy == {}
    folder.read_again()
    assert not folder.has_changed()
    assert folder.by_policy == {"p": first}
    # The same size at the same time, as two saves in one tick of the clock have.
    changed = first.model_copy(update={"created": first.created + 1})
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    os.utime(save(version, changed), ns=times)
    assert folder.has_changed()
    folder.read_again()
    assert folder.by_policy == {"p": changed}
    (path.parent / ".123.draft").write_text("{")
    assert not folder.has_changed()


def test_of_two_files_the_good_one_is_taken_up_and_the_damaged_one_stays_as_it_was(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    version = load_version(models / PRM / "1")
    first = calibration_of(version, policy="p")
    path = save(version, first)
    folder = CalibrationFolder(version)
    path.write_text("{")
    other = calibration_of(version, policy="q")
    save(version, other)
    folder.read_again()
    assert folder.by_policy == {"p": first, "q": other}
    (path.parent / "new.json").write_text("{")
    folder.read_again()
    assert folder.by_policy == {"p": first, "q": other}
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [str(path) in told[0], "new.json" in told[1]] == [True, True]
    assert [line.rpartition("; ")[2] for line in told] == ["the one before stays", "it is not used"]
    # Said once, and not again until the file changes.
    assert not folder.has_changed()
    path.unlink()
    folder.read_again()
    assert folder.by_policy == {"q": other}


def test_no_version_takes_the_name_of_the_folder_of_calibrations(models: Path) -> None:
    manifest = load_version(models / PRM / "1").manifest
    with pytest.raises(ValidationError, match="choose another"):
        type(manifest).model_validate(manifest.model_dump() | {"version": "calibration"})


@pytest.mark.parametrize("policy", ["", "../x", ".hidden", "a b", "x" * 81, "a\nb"])
def test_a_policys_name_is_safe_as_a_file_name(models: Path, policy: str) -> None:
    version = load_version(models / PRM / "1")
    record = calibration_of(version, policy="p")
    with pytest.raises(ValidationError):
        Calibration.model_validate(record.model_dump() | {"policy": policy})


def test_names_that_differ_lie_in_different_files(models: Path) -> None:
    version = load_version(models / PRM / "1")
    names = ["a/b", "a%2Fb", "a:b", "a_b", "a@1", "a..b"]
    paths = {file_of(version, name) for name in names}
    assert len(paths) == len(names)
    assert {path.parent for path in paths} == {models / PRM / "calibration" / "1"}


def test_a_map_is_constant_outside_of_its_knots() -> None:
    fitted = IsotonicMap(scores=(0.3, 0.6), probabilities=(0.2, 0.8))
    assert [fitted.probability(s) for s in (0.0, 0.3, 0.45, 0.6, 1.0)] == pytest.approx(
        [0.2, 0.2, 0.5, 0.8, 0.8]
    )
    with pytest.raises(AssertionError, match="outside"):
        fitted.probability(float("nan"))
