"""Outcomes on disk: what is taken again, and what is not."""

import json
from pathlib import Path

import pytest
from pydantic import JsonValue

from prm.errors import InvalidInput
from search.evaluation.arms import Arm
from search.evaluation.kept import KeptOutcomes, digest_of
from search.strategies.beam import Beam
from tests.search.evaluation.test_figures import BEAM, arm_run, best
from tests.search.evaluation.test_runs import problems

ABOUT: dict[str, JsonValue] = {"policy": "p", "sampling": {"seed": 0, "temperature": 0.8}}


def test_a_run_comes_back_as_it_was_and_others_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    run, other = arm_run(BEAM, 200, lambda n: n % 3 == 0), arm_run(best(4), 100, lambda n: True)
    KeptOutcomes(path, ABOUT).add(run)
    KeptOutcomes(path, ABOUT).add(other)
    kept = KeptOutcomes(path, ABOUT)
    assert (kept.of(BEAM), kept.of(best(4))) == (run, other)
    assert kept.of(best(5)) is None
    assert kept.of(Arm(strategy=Beam(n=8, width=4, selection="prm"))) is None


def test_outcomes_of_another_seed_are_none(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    KeptOutcomes(path, ABOUT).add(arm_run(BEAM, 200, lambda n: True))
    assert KeptOutcomes(path, ABOUT | {"sampling": {"seed": 1}}).of(BEAM) is None


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    KeptOutcomes(path, ABOUT).add(arm_run(BEAM, 200, lambda n: True))
    line = json.loads(path.read_text())
    path.write_text(path.read_text() + json.dumps(line | {"outcomes": [[True]]}) + "\n")
    with pytest.raises(InvalidInput, match=r"--outcomes .*, line 2: outcomes.*remove the line"):
        KeptOutcomes(path, ABOUT)


def test_the_digest_tells_problems_apart() -> None:
    digests = {digest_of(problems(*answers)) for answers in (("5", "9"), ("9", "5"), ("5",))}
    assert len(digests) == 3
    assert digest_of(problems("5")) == digest_of(problems("5"))
