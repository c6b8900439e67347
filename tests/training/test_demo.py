"""The one command, end to end in its quick form, and what it must leave behind."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from prm.chat import ChatTokenizer
from prm.engine.golden import check_golden
from prm.engine.model import CausalLM
from prm.manifest import PrmManifest
from prm.registry import Registry
from training.demonstration.report import BEGIN, END, figures, insert_figures
from training.demonstration.run import refuse_published, run
from training.demonstration.settings import DemoSettings
from training.demonstration.staged import POLICY, PRM

QUICK = DemoSettings.quick()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    run(QUICK, out, "1", "quick")
    return out


def test_both_models_are_live_and_pass_their_golden_scores(published: Path) -> None:
    registry = Registry.open(published)
    assert [version.key for version in registry.live()] == [f"{POLICY}@1", f"{PRM}@1"]
    models = {version.key: CausalLM.load(version.folder) for version in registry}
    for version in registry:
        check_golden(version, ChatTokenizer(version.folder), models)


def test_the_prm_pins_the_policy_as_its_reference(published: Path) -> None:
    registry = Registry.open(published)
    prm, policy = registry.get(PRM), registry.get(POLICY)
    assert prm is not None
    assert policy is not None
    assert isinstance(prm.manifest, PrmManifest)
    assert registry.references_of(prm) == [policy]
    assert prm.manifest.recipe["reference"]["weights_sha256"] == policy.weights_sha256
    assert (prm.manifest.aggregation, prm.manifest.step_separator) == ("min", "\n")


def test_transformers_loads_the_folders(published: Path) -> None:
    for version in Registry.open(published):
        model = AutoModelForCausalLM.from_pretrained(version.folder)
        assert version.config["architectures"] == ["Qwen2ForCausalLM"]
        assert model.generation_config.eos_token_id == ChatTokenizer(version.folder).eos_id


def test_the_report_holds_the_figures(published: Path) -> None:
    evaluation = json.loads((published / "evaluation.json").read_text())
    assert evaluation["settings"]["test_problems"] == QUICK.test_problems
    assert figures(evaluation) in (published / "README.md").read_text()
    page = insert_figures(f"a\n{BEGIN}\nold\n{END}\nb\n", evaluation)
    assert page == f"a\n{BEGIN}\n{figures(evaluation)}\n{END}\nb\n"


def test_a_published_version_is_refused_before_any_work(published: Path) -> None:
    with pytest.raises(FileExistsError, match="choose another --version"):
        refuse_published(published, "1")
    refuse_published(published, "2")


def test_the_same_seed_gives_the_same_models_and_another_seed_others(
    published: Path, tmp_path: Path
) -> None:
    def weights(root: Path) -> list[str]:
        return [version.weights_sha256 for version in Registry.open(root)]

    run(QUICK, tmp_path / "again", "1", "quick")
    run(replace(QUICK, seed=1), tmp_path / "other", "1", "quick")
    assert weights(tmp_path / "again") == weights(published)
    assert not set(weights(tmp_path / "other")) & set(weights(published))


def test_the_run_leaves_torch_as_many_threads_as_it_asks_for(published: Path) -> None:
    assert torch.get_num_threads() == QUICK.threads
