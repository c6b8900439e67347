"""What a checkpoint is, told from its files; or what differs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput, ModelFolderError
from prm.families import qwen
from prm.families.base import HeadLayout
from prm.importing.detection import Asked, detect
from tests.checkpoints import CHECKPOINTS, stage_llama_chat
from tests.imports import SAID
from tests.own_heads import qwen_layout, stage_qwen

LABELS = {
    "qwen": "qwen-math-prm/1",
    "skywork": "skywork-o1/1",
    "token_head": "trl/1",
    "repirl": "repirl-actions/1",
    "outcome": "qwen-math-rm/1",
    "reason_eval": "reason-eval/1",
    "pqm": "pqm/1",
    "math_shepherd": "math-shepherd/1",
    "rlhflow": "rlhflow-deepseek/1",
    "generative": "genprm/1",
}


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_a_family_is_told_from_the_files(family: str, folders: Callable[[str], Path]) -> None:
    found = detect(Checkpoint.open(folders(family)), SAID.get(family, Asked()))
    assert (found.family, found.recipe.label) == (family, LABELS[family])


@pytest.mark.parametrize(
    ("family", "asked", "message"),
    [
        (
            "qwen",
            Asked(family="rlhflow"),
            r"not of family rlhflow: architecture Qwen2ForProcessRewardModel is not a causal LM\. "
            r"This is a qwen-math-prm/1 checkpoint: `score\.2\.weight` has shape \[2, 32\]; import "
            r"it with --family qwen$",
        ),
        (
            "pqm",
            Asked(family="rlhflow"),
            r"which reads the vocabulary\. This is a pqm/1 .*`v_head\.summary\.weight`.* \[1, 32\]",
        ),
        (
            "token_head",
            Asked(family="skywork"),
            r"Qwen2ForTokenClassification is not ….*a trl/1 .*--family token_head",
        ),
        ("outcome", Asked(family="qwen"), r"qwen-math-rm/1 .*--family outcome"),
        (
            "rlhflow",
            Asked(family="qwen"),
            r"LlamaForCausalLM is not …ForProcessRewardModel.*rlhflow-deepseek/1",
        ),
        ("math_shepherd", Asked(recipe="er-prm"), r"nor ER-PRM's.*a math-shepherd/1 checkpoint"),
        ("rlhflow", Asked(recipe="math-shepherd"), r"neither Math-Shepherd's ids 12902, 648, 387"),
        ("outcome", Asked(recipe="sequence-classification"), r"files are read as qwen-math-rm/1"),
        ("token_head", Asked(recipe="repirl"), r"score\.weight is of shape \[2, 32\]; .* \[1, 32"),
        ("rlhflow", Asked(family="implicit"), r"name --beta, and --reference NAME@VERSION or"),
    ],
)
def test_another_family_is_refused_with_the_right_recipe(
    family: str, asked: Asked, message: str, folders: Callable[[str], Path]
) -> None:
    with pytest.raises(ModelFolderError, match=message):
        detect(Checkpoint.open(folders(family)), asked)


def test_a_head_of_another_shape_is_of_no_family(tmp_path: Path) -> None:
    layout = HeadLayout(prefix="score", layers=("0", "2"), outputs=3)
    stage_qwen(layout, qwen_layout("<extra_0>"), architecture="Qwen2ForProcessRewardModel")(
        tmp_path
    )
    with pytest.raises(ModelFolderError) as error:
        detect(Checkpoint.open(tmp_path), Asked())
    assert "is of no known family (Qwen2ForProcessRewardModel)" in str(error.value)
    assert "qwen: score.2.weight is of shape [3, 32]; this kind has one of shape [2, 32]" in str(
        error.value
    )
    assert "math_shepherd: architecture Qwen2ForProcessRewardModel is not a causal LM" in str(
        error.value
    )


def test_a_marker_that_is_no_single_token_is_told(tmp_path: Path) -> None:
    stage_qwen(qwen.HEAD, qwen_layout(), architecture="Qwen2ForProcessRewardModel")(tmp_path)
    with pytest.raises(ModelFolderError, match=r"marker '<extra_0>' is \d+ tokens here"):
        detect(Checkpoint.open(tmp_path), Asked())


def test_a_plain_language_model_has_to_be_named(tmp_path: Path) -> None:
    stage_llama_chat(tmp_path / "some-chat-model")
    opened = Checkpoint.open(tmp_path / "some-chat-model")
    with pytest.raises(ModelFolderError) as error:
        detect(opened, Asked())
    for line in (
        "could be read by several families (LlamaForCausalLM)",
        "--family rlhflow (rlhflow-deepseek/1)",
        "--policy (a model that writes steps, and no PRM)",
        "implicit: nothing in a checkpoint tells an implicit PRM",
        "name --recipe genprm or --recipe thinkprm",
        "skywork: v_head.summary.weight is missing",
    ):
        assert line in str(error.value)
    found = detect(opened, Asked(recipe="rlhflow-mistral"))
    assert (found.family, found.step_separator, found.aggregation) == ("rlhflow", "\n", "mean")
    free = detect(
        opened,
        Asked(family="implicit", settings={"beta": 0.05, "reference": None, "end_token": True}),
    )
    assert free.recipe.model_dump()["end_token"] is True


def test_settings_change_the_recipe_and_unknown_ones_are_refused(
    folders: Callable[[str], Path],
) -> None:
    opened = Checkpoint.open(folders("token_head"))
    found = detect(opened, Asked(recipe="h4"))
    assert (found.recipe.label, found.step_separator) == ("h4/1", "\n\n")
    found = detect(opened, Asked(settings={"separator": " #"}))
    assert (found.recipe.label, found.step_separator) == ("trl/1", " #")
    with pytest.raises(InvalidInput, match="no setting 'beta'; it has context_limit, separator"):
        detect(opened, Asked(settings={"beta": 0.5}))
    with pytest.raises(InvalidInput, match=r"setting bos: .*boolean"):
        detect(opened, Asked(settings={"bos": 7}))
    with pytest.raises(InvalidInput, match="family 'tarot' is not one of implicit"):
        detect(opened, Asked(family="tarot"))
    with pytest.raises(InvalidInput, match="recipe 'h4' of family qwen is not one of qwen-math"):
        detect(opened, Asked(family="qwen", recipe="h4"))
