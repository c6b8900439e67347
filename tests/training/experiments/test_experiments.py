"""Every experiment from its first job to its page, with figures that mean nothing."""

import json
import re
import sys
from pathlib import Path

import pytest

from training.experiments.run import main
from training.experiments.table import EXPERIMENTS, experiment_named


def test_every_experiment_is_named_as_in_the_table() -> None:
    for name in EXPERIMENTS:
        experiment = experiment_named(name)
        assert experiment.name == name
        for quick in (True, False):
            units = [unit for units in experiment.rounds(quick) for unit in units]
            assert len(set(units)) == len(units)


@pytest.mark.slow
# A model that hardly trained has nothing to take some of the means of.
@pytest.mark.filterwarnings("default::RuntimeWarning")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_comes_to_a_page(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, docs = tmp_path / "out", tmp_path / "docs"
    arguments = [name, "--quick", f"--out={out}", f"--docs={docs}", "--json"]
    monkeypatch.setattr(sys, "argv", ["experiments", *arguments])
    main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    page = Path(told["page"]).read_text()
    assert Path(told["page"]).parent == docs
    experiment = experiment_named(name)
    assert page.startswith(f"# {experiment.title}\n\n**Claim.** {experiment.claim}")
    assert f"**{told['verdict'].capitalize()}.** {told['sentence']}" in page
    assert experiment.setting.strip() in page
    assert f"    rung experiments {name}\n" in page
    assert "the figures mean nothing" in page
    (picture,) = re.findall(r"^!\[.*\]\((.*)\)$", page, re.MULTILINE)
    assert "</svg>" in (docs / picture).read_text()
    assert re.search(r"^### .+\n\n\|.+\|\n\| --- \|", page, re.MULTILINE)
    results = json.loads((docs / f"{name}.json").read_text())
    units = {str(unit) for units in experiment.rounds(True) for unit in units}
    assert results.keys() == units
