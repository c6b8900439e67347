"""The models in this repository: they load, reproduce their scores, and do what is said of them."""

import json
from pathlib import Path

import pytest
import torch

from prm.chat import ChatTokenizer
from prm.engine.golden import check_golden
from prm.engine.model import CausalLM
from prm.manifest import ModelVersion, PrmManifest
from prm.registry import Registry
from training.demonstration.report import BEGIN, figures
from training.evaluate import (
    best_of_n,
    majority,
    pass_at_1,
    step_accuracy,
    threshold_hits,
)
from training.rollouts import sample_rollouts
from training.scoring import PrmScorer
from training.tasks.arithmetic import problems
from training.types import Rollout

REPOSITORY = Path(__file__).parents[2]
MODELS = REPOSITORY / "models"
NUM_PROBLEMS, NUM_SAMPLES = 40, 8


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.open(MODELS)


@pytest.fixture(scope="module")
def models(registry: Registry) -> dict[str, CausalLM]:
    return {
        version.key: CausalLM.load(version.folder, device="cpu", dtype=torch.float32)
        for version in registry
    }


@pytest.fixture(scope="module")
def prm(registry: Registry) -> ModelVersion:
    (version,) = (v for v in registry.live() if isinstance(v.manifest, PrmManifest))
    return version


@pytest.fixture(scope="module")
def groups(
    registry: Registry, prm: ModelVersion, models: dict[str, CausalLM]
) -> list[list[Rollout]]:
    """Fresh samples of problems that neither model was trained on."""
    assert isinstance(prm.manifest, PrmManifest)
    (policy,) = registry.references_of(prm)
    return sample_rollouts(
        models[policy.key],
        ChatTokenizer(policy.folder),
        problems(77, NUM_PROBLEMS, "validation"),
        per_problem=NUM_SAMPLES,
        seed=77,
    )


@pytest.fixture(scope="module")
def scores(
    prm: ModelVersion, models: dict[str, CausalLM], groups: list[list[Rollout]]
) -> list[list[list[float]]]:
    scorer = PrmScorer(prm, ChatTokenizer(prm.folder), models)
    return [[[step.score for step in steps] for steps in scorer.score(group)] for group in groups]


def test_the_golden_scores_are_reproduced(registry: Registry, models: dict[str, CausalLM]) -> None:
    for version in registry:
        assert len(version.manifest.golden) == 4
        check_golden(version, ChatTokenizer(version.folder), models)


def test_both_models_together_stay_small() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*")) < 12_000_000


def test_the_policy_is_right_about_half_of_the_time(groups: list[list[Rollout]]) -> None:
    # The stated 40 to 60 %, and two standard errors of 40 problems on either side.
    assert 0.28 < _mean([pass_at_1(group) for group in groups]) < 0.72


def test_the_prm_ranks_far_better_than_a_vote(
    groups: list[list[Rollout]], scores: list[list[list[float]]]
) -> None:
    best = [
        best_of_n(group, [min(steps) for steps in rows])
        for group, rows in zip(groups, scores, strict=True)
    ]
    assert _mean(best) > _mean([pass_at_1(group) for group in groups]) + 0.15
    assert _mean(best) > _mean([majority(group) for group in groups])


def test_the_prm_finds_the_first_wrong_step(
    prm: ModelVersion, groups: list[list[Rollout]], scores: list[list[list[float]]]
) -> None:
    assert isinstance(prm.manifest, PrmManifest)
    hits = threshold_hits(groups, scores, prm.manifest.threshold)
    assert step_accuracy(groups, hits).f1.mean > 0.7


def test_the_page_says_what_the_run_measured() -> None:
    evaluation = json.loads((MODELS / "evaluation.json").read_text())
    page = (REPOSITORY / "docs" / "demonstration-models.md").read_text()
    assert BEGIN in page
    assert figures(evaluation) in page
    assert figures(evaluation) in (MODELS / "README.md").read_text()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
