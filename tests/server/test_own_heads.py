"""PRMs with a head of their own, behind a real server: loaded, checked and scored as published."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from prm.engine.residents import Device, Residents
from prm.errors import ModelFolderError
from prm.families.base import Recipe
from prm.families.outcome import OutcomeRecipe
from prm.families.qwen import HEAD as QWEN_HEAD
from prm.families.qwen import QwenRecipe
from prm.families.skywork import HEAD as VALUE_HEAD
from prm.families.skywork import SkyworkRecipe
from prm.families.token_head import TokenHeadRecipe
from prm.manifest import ModelVersion
from tests.own_heads import qwen_layout, stage_qwen
from tests.published import computed_golden, publish_prm, score_items, scorer_of
from tests.server.conftest import rung_serve

pytestmark = pytest.mark.anyio

PROBLEM, STEPS = "Janet's ducks lay 16 eggs.", ["16 - 3 = 13", "13 * 2 = 26", "The answer is 26"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A family's recipe, and what writes a checkpoint for it."""

    family: str
    recipe: Recipe
    stage: Callable[[Path], None]


def kinds() -> dict[str, Kind]:
    token = TokenHeadRecipe.model_validate({"name": "pure"})
    outcome = OutcomeRecipe()
    return {
        "qwen": Kind(
            family="qwen",
            recipe=QwenRecipe(marker_id=None),
            stage=stage_qwen(
                QWEN_HEAD, qwen_layout("<extra_0>"), architecture="Qwen2ForProcessRewardModel"
            ),
        ),
        "skywork": Kind(
            family="skywork",
            recipe=SkyworkRecipe(),
            stage=stage_qwen(VALUE_HEAD, qwen_layout(), architecture="Qwen2ForPrmModel"),
        ),
        "pure": Kind(
            family="token_head",
            recipe=token,
            stage=stage_qwen(token.head, qwen_layout(), architecture="Qwen2ForTokenClassification"),
        ),
        "outcome": Kind(
            family="outcome",
            recipe=outcome,
            stage=stage_qwen(
                outcome.head, qwen_layout(), architecture="Qwen2ForSequenceClassification"
            ),
        ),
    }


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelVersion]:
    """Published twice: the first time to compute the golden scores of the second."""
    drafts, root = tmp_path_factory.mktemp("drafts"), tmp_path_factory.mktemp("models")
    found = {}
    for name, kind in kinds().items():
        parts = (name, kind.family, kind.recipe, kind.stage)
        golden = computed_golden(publish_prm(drafts, *parts), PROBLEM, STEPS)
        found[name] = publish_prm(root, *parts, golden=golden)
    return found


@pytest.fixture(scope="module")
def http(versions: dict[str, ModelVersion]) -> Iterator[httpx2.Client]:
    root = next(iter(versions.values())).folder.parent.parent
    with (
        rung_serve(root) as running,
        httpx2.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


def score(http: httpx2.Client, model: str, *items: dict[str, Any]) -> httpx2.Response:
    body = {"model": model, "items": items, "include": ["raw"]}
    return http.post("/v1/prm/score", json=body)


@pytest.mark.parametrize("name", ["qwen", "skywork", "pure", "outcome"])
async def test_served_scores_are_those_of_the_family(
    name: str, http: httpx2.Client, versions: dict[str, ModelVersion]
) -> None:
    items: Sequence[tuple[str, Sequence[str]]] = [(PROBLEM, STEPS), ("1+1", ["2"])]
    reply = score(http, name, *({"problem": p, "steps": list(s)} for p, s in items))
    assert reply.status_code == 200, reply.text
    expected = await score_items(scorer_of(versions[name]), items)
    for item, scored in zip(reply.json()["data"], expected, strict=True):
        raws = [step["raw"] for step in item["steps"]]
        assert raws == pytest.approx([step.raw for step in scored.step_scores], abs=1e-4)
    assert reply.json()["recipe"] == f"{kinds()[name].recipe.label}"


def test_an_outcome_model_answers_with_one_step_that_is_the_response(http: httpx2.Client) -> None:
    reply = score(http, "outcome", {"problem": PROBLEM, "steps": STEPS}).json()
    (item,) = reply["data"]
    (step,) = item["steps"]
    response = "\n\n".join(STEPS)
    assert (step["text"], step["char_start"], step["char_end"]) == (response, 0, len(response))
    assert item["score"] == step["score"]


def test_a_marker_in_a_text_is_refused_by_its_field(http: httpx2.Client) -> None:
    text = "a\n\nb<extra_0>"
    for item, field in (
        ({"problem": "1", "steps": ["a", "b<extra_0>"]}, "items[1].steps[1]"),
        ({"problem": "1", "response": text}, "items[1].response"),
        ({"problem": "1<extra_0>", "response": "a"}, "items[1].problem"),
    ):
        reply = score(http, "qwen", {"problem": "1", "steps": ["fine"]}, item)
        assert reply.status_code == 400, reply.text
        error = reply.json()["error"]
        assert error["param"] == field
        assert "'<extra_0>' at character 1" in error["message"]


def test_a_second_round_pays_only_for_its_new_step(http: httpx2.Client) -> None:
    first = score(http, "qwen", {"problem": "A round", "steps": STEPS[:2]}).json()
    second = score(http, "qwen", {"problem": "A round", "steps": STEPS}).json()
    old = [step["raw"] for step in first["data"][0]["steps"]]
    assert [step["raw"] for step in second["data"][0]["steps"]][:2] == pytest.approx(old, abs=1e-5)
    assert second["usage"]["cached_tokens"] >= first["usage"]["prompt_tokens"] - 1


def test_a_version_that_is_not_read_as_it_was_published_is_refused(
    versions: dict[str, ModelVersion],
) -> None:
    version = versions["qwen"]
    residents = Residents(Device())
    assert residents.load([version]).models[version.key].dtype == torch.float32
    other = QwenRecipe(marker_id=None, system=None).model_dump(mode="json")
    manifest = version.manifest.model_copy(update={"recipe": other})
    with pytest.raises(ModelFolderError, match="not read as it was published"):
        residents.load([ModelVersion(version.folder, manifest)])
