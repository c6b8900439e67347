"""Experiments: units are run once, a failure is named, and the page says what was found."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from prm.errors import InvalidInput
from tests.training.experiments.coins import BENT, Coins
from training.experiments.base import Folders, Report, Table, Unit
from training.experiments.page import write_page
from training.experiments.run import RESULT, publish, run_experiment
from training.experiments.table import experiment_named

ALL = (Unit("coin", 0), Unit("coin", 1), Unit("sum", 0))


def put(base: Path, unit: Unit, **result: Any) -> None:
    folder = Folders(base)[unit]
    folder.mkdir(parents=True)
    (folder / RESULT).write_text(json.dumps(result))


def test_units_with_a_result_are_not_run_again(tmp_path: Path) -> None:
    for unit in ALL:
        put(tmp_path, unit, heads=7)
    # No other process knows an experiment of this name: whatever was run would fail.
    results = run_experiment(Coins(), tmp_path, quick=False, processes=2)
    assert results == {unit: {"heads": 7} for unit in ALL}


def test_failed_units_are_named_with_their_last_word(tmp_path: Path) -> None:
    put(tmp_path, ALL[0], heads=1)
    with pytest.raises(InvalidInput) as error:
        run_experiment(Coins(), tmp_path, quick=False, processes=1)
    assert "1 runs failed; run the command again to go on" in str(error.value)
    assert "coin.1: error: there is no experiment 'coins'" in str(error.value)
    assert "coin.0" not in str(error.value)
    assert "sum.0" not in str(error.value)


@pytest.mark.slow
def test_a_failure_stops_what_comes_after_it_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = "from training.experiments.table import EXPERIMENTS\n"
    known += "EXPERIMENTS['coins'] = 'tests.training.experiments.coins:Coins'\n"
    (tmp_path / "sitecustomize.py").write_text(known)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / BENT).touch()
    folders = Folders(tmp_path)
    with pytest.raises(InvalidInput, match=r"coin\.1: ValueError: the coin is bent"):
        run_experiment(Coins(), tmp_path, quick=False, processes=1)
    stood = (folders[ALL[0]] / RESULT).read_text()
    assert not folders[ALL[2]].exists()
    (tmp_path / BENT).unlink()
    results = run_experiment(Coins(), tmp_path, quick=False, processes=2)
    assert {unit: result["heads"] for unit, result in results.items()} == dict(
        zip(ALL, (1, 0, 1), strict=True)
    )
    assert (folders[ALL[0]] / RESULT).read_text() == stood


def test_a_page_has_its_claim_verdict_picture_tables_and_command(tmp_path: Path) -> None:
    results = {unit: {"heads": 1} for unit in ALL}
    report = Coins().report(results, quick=False)
    page = publish(Coins(), report, results, tmp_path, quick=False).read_text()
    assert page.startswith("# Coins\n\n**Claim.** Two coins fall on heads. (nobody)\n")
    assert "**Partly reproduced.** One of two did." in page
    assert "| unit | heads |\n| --- | --- |\n| coin.0 | 1 |" in page
    assert "They were fair." in page
    assert "    rung experiments coins\n\n3 runs.\n" in page
    told = json.loads((tmp_path / "coins.json").read_text())
    assert told == {str(unit): result for unit, result in results.items()}
    (picture,) = re.findall(r"!\[Coins\]\((.*)\)", page)
    assert (tmp_path / picture).read_text().startswith("<?xml")


def test_a_quick_page_says_that_it_means_nothing(tmp_path: Path) -> None:
    results = {unit: {"heads": 1} for unit in ALL}
    report = Coins().report(results, quick=True)
    page = publish(Coins(), report, results, tmp_path, quick=True).read_text()
    assert "the figures mean nothing" in page


def test_the_same_report_is_the_same_picture(tmp_path: Path) -> None:
    report = Coins().report({}, quick=False)
    pages = [write_page(Coins(), report, tmp_path / name, "").parent for name in "ab"]
    one, other = ((folder / "coins.svg").read_bytes() for folder in pages)
    assert one == other


def test_a_row_of_another_width_is_refused(tmp_path: Path) -> None:
    table = Table("Coins", ("unit", "heads"), (("coin.0",),))
    report = Report(verdict="reproduced", sentence="", tables=(table,), draw=lambda figure: None)
    with pytest.raises(AssertionError, match="Coins"):
        write_page(Coins(), report, tmp_path, "")


def test_an_unknown_experiment_is_told_those_there_are() -> None:
    with pytest.raises(InvalidInput, match="no experiment 'coins'; there are implicit_prm, prime"):
        experiment_named("coins")
