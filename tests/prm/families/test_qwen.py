"""Qwen2.5-Math-PRM and ReasonFlux-PRM against the model card's own way of reading them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput, ModelFolderError
from prm.families.base import RecipeMismatch
from prm.families.qwen import HEAD, SPEC, QwenRecipe, propose
from prm.manifest import ModelVersion
from prm.steps import cut_steps, join_steps
from prm.types import Message, Trajectory
from tests.layouts import QWEN_CONTROL, byte_level_layout
from tests.own_heads import ProcessRewardModel, load_literal, qwen_layout, stage_qwen, tokenizer_of
from tests.published import publish_prm, score_items, scorer_of

pytestmark = pytest.mark.anyio

ARCHITECTURE = "Qwen2ForProcessRewardModel"
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
QWEN = QwenRecipe(marker_id=None, context_limit=None)
REASONFLUX = QwenRecipe.model_validate({"name": "reasonflux-prm", "marker_id": None})
# The published configuration names code that is not there; it must never be asked for.
REMOTE_CODE = {"auto_map": {"AutoModel": f"modeling_qwen2_rm.{ARCHITECTURE}"}, "num_labels": 2}
ITEMS: Sequence[tuple[str, Sequence[str]]] = (
    ("Sue lives in a fun neighborhood.", ["18 pink flamingos.", "18 / 3 = 6", "The answer is 24"]),
    ("1+1", ["2"]),
    # Near the marker and the template's own words.
    ("extra_0 <extra_1>", ["<extra_ 0>", "extra_0>", "<extra_", "assistant\nuser\n", "naïve → 7"]),
    ("", ["  white space around  ", "a\n\nb", "\n."]),
)


def card_scores(
    folder: Path, problem: str, steps: Sequence[str], system: str | None
) -> list[float]:
    """As the card does it: chat, one encode, softmax at every marker, class 1."""
    tokenizer = tokenizer_of(folder)
    model = load_literal(ProcessRewardModel, folder)
    messages = [
        {"role": "user", "content": problem},
        {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
    ]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    ids = tokenizer.encode(chat, return_tensors="pt")
    marker_id = tokenizer.encode("<extra_0>")[0]
    with torch.no_grad():
        probabilities = model(ids).softmax(dim=-1)
    return [float(p) for p in probabilities[ids == marker_id][:, 1]]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    stage = stage_qwen(
        HEAD, qwen_layout("<extra_0>"), architecture=ARCHITECTURE, config=REMOTE_CODE
    )
    return publish_prm(tmp_path_factory.mktemp("models"), "qwen", "qwen", QWEN, stage)


@pytest.fixture(scope="module")
def reasonflux(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    stage = stage_qwen(HEAD, qwen_layout("<extra_0>"), architecture=ARCHITECTURE)
    return publish_prm(tmp_path_factory.mktemp("models"), "flux", "qwen", REASONFLUX, stage)


def trajectory(problem: str, *steps: str) -> Trajectory:
    response, placed = join_steps(steps, "\n\n")
    return Trajectory(
        messages=(Message(role="user", content=problem),), response=response, steps=placed
    )


@pytest.mark.parametrize("name", ["qwen", "reasonflux"])
async def test_scores_are_those_of_the_card(name: str, request: pytest.FixtureRequest) -> None:
    version: ModelVersion = request.getfixturevalue(name)
    found = await score_items(scorer_of(version), ITEMS)
    system = SYSTEM if name == "qwen" else None
    seen: list[float] = []
    for (problem, steps), scored in zip(ITEMS, found, strict=True):
        expected = card_scores(version.folder, problem, steps, system)
        assert len(expected) == len(steps)
        assert [step.score for step in scored.step_scores] == pytest.approx(expected, abs=1e-4)
        seen += [step.raw for step in scored.step_scores]
    assert max(seen) - min(seen) > 0.5, "scores that are all alike would prove nothing"


async def test_the_two_recipes_differ_by_their_system_turn(
    qwen: ModelVersion, reasonflux: ModelVersion
) -> None:
    item = [("1+1", ["2"])]
    (ours,) = await score_items(scorer_of(qwen), item)
    (theirs,) = await score_items(scorer_of(reasonflux), item)
    assert abs(ours.step_scores[0].raw - theirs.step_scores[0].raw) > 1e-3


async def test_a_system_turn_of_the_chat_replaces_the_recipes(qwen: ModelVersion) -> None:
    family = SPEC.load(qwen, ChatTokenizer(qwen.folder))
    plain = trajectory("1+1", "2")
    system = Message(role="system", content=SYSTEM)
    spelt_out = Trajectory(
        messages=(system, *plain.messages), response=plain.response, steps=plain.steps
    )
    assert family.encode(spelt_out).ids == family.encode(plain).ids
    other = Message(role="system", content="Be brief.")
    changed = Trajectory(
        messages=(other, *plain.messages), response=plain.response, steps=plain.steps
    )
    assert family.encode(changed).ids != family.encode(plain).ids


async def test_nothing_is_read_after_the_last_marker(qwen: ModelVersion) -> None:
    family = SPEC.load(qwen, ChatTokenizer(qwen.folder))
    shorter = family.encode(trajectory("1+1", "2")).reads[0].ids
    longer = family.encode(trajectory("1+1", "2", "3")).reads[0].ids
    assert longer[: len(shorter)] == shorter


@pytest.mark.parametrize("marker", ["<extra_0>", "<|im_end|>"])
def test_a_marker_or_control_token_in_a_text_is_refused(qwen: ModelVersion, marker: str) -> None:
    family = SPEC.load(qwen, ChatTokenizer(qwen.folder))
    with pytest.raises(InvalidInput, match="character 2") as problem:
        family.encode(trajectory(f"a {marker}", "2"))
    assert problem.value.param == "messages[0].content"
    with pytest.raises(InvalidInput, match="character 2") as step:
        family.encode(trajectory("a", "2", f"b {marker}"))
    assert step.value.param == "steps[1]"


def test_a_marker_that_is_an_ordinary_added_token_is_refused_all_the_same(tmp_path: Path) -> None:
    tokenizer = byte_level_layout(QWEN_CONTROL)
    tokenizer.add_tokens([AddedToken("<extra_0>", special=False)])
    version = publish_prm(
        tmp_path, "q", "qwen", QWEN, stage_qwen(HEAD, tokenizer, architecture=ARCHITECTURE)
    )
    family = SPEC.load(version, ChatTokenizer(version.folder))
    assert len(family.encode(trajectory("a", "b", "c")).step_values) == 2
    with pytest.raises(InvalidInput, match="step marker '<extra_0>' at character 1"):
        family.encode(trajectory("a", "b<extra_0>", "c"))


def test_a_cut_response_is_named_as_the_response(qwen: ModelVersion) -> None:
    family = SPEC.load(qwen, ChatTokenizer(qwen.folder))
    text = "a\n\nb<extra_0>"
    cut = Trajectory(
        messages=(Message(role="user", content="1"),),
        response=text,
        steps=cut_steps(text, "\n\n"),
        is_cut=True,
    )
    with pytest.raises(InvalidInput) as caught:
        family.encode(cut)
    assert caught.value.param == "response"


def test_an_item_longer_than_the_recipe_was_trained_for_is_refused(tmp_path: Path) -> None:
    recipe = QWEN.model_copy(update={"context_limit": 100})
    version = publish_prm(
        tmp_path,
        "q",
        "qwen",
        recipe,
        stage_qwen(HEAD, qwen_layout("<extra_0>"), architecture=ARCHITECTURE),
    )
    family = SPEC.load(version, ChatTokenizer(version.folder))
    with pytest.raises(InvalidInput, match="reads at most 100"):
        family.encode(trajectory("1", "é ü 7 " * 100))


def card_layout() -> Tokenizer:
    """Ids as in Qwen 2.5's vocabulary: `<extra_0>` is 151651."""
    content = json.loads(byte_level_layout(()).to_str())
    vocabulary = content["model"]["vocab"]
    for number in range(len(vocabulary), 151_643):
        vocabulary[f"<filler {number}>"] = number
    tokenizer = Tokenizer.from_str(json.dumps(content))
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<c{n}>" for n in range(5))]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in names])
    tokenizer.add_special_tokens([AddedToken("<extra_0>", special=True)])
    return tokenizer


@pytest.mark.slow
async def test_the_cards_marker_id_is_demanded_and_found(tmp_path: Path) -> None:
    tokenizer = card_layout()
    assert tokenizer.token_to_id("<extra_0>") == 151_651
    stage = stage_qwen(HEAD, tokenizer, architecture=ARCHITECTURE)
    version = publish_prm(tmp_path, "card", "qwen", QwenRecipe(), stage)
    (scored,) = await score_items(scorer_of(version), ITEMS[:1])
    expected = card_scores(version.folder, *ITEMS[0], SYSTEM)
    assert [step.score for step in scored.step_scores] == pytest.approx(expected, abs=1e-4)
    proposal = propose(Checkpoint.open(version.folder))
    assert proposal.recipe == QwenRecipe()
    assert (proposal.recipe.system, proposal.recipe.context_limit) == (SYSTEM, 4096)


def test_another_marker_id_than_the_recipes_is_refused(qwen: ModelVersion) -> None:
    with pytest.raises(
        ModelFolderError, match=r"'<extra_0>' is one token with id 151651 in .* here"
    ):
        SPEC.bind(qwen, QwenRecipe(), ChatTokenizer(qwen.folder))


def test_a_marker_of_several_tokens_is_refused(tmp_path: Path) -> None:
    stage = stage_qwen(HEAD, qwen_layout(), architecture=ARCHITECTURE)
    version = publish_prm(tmp_path, "q", "qwen", QWEN, stage)
    with pytest.raises(ModelFolderError, match=r"'<extra_0>' is \d+ tokens here"):
        SPEC.load(version, ChatTokenizer(version.folder))


def test_the_recipe_is_told_from_the_checkpoint(qwen: ModelVersion, tmp_path: Path) -> None:
    proposal = propose(Checkpoint.open(qwen.folder))
    assert proposal.recipe.name == "qwen-math-prm"
    assert proposal.aggregation == "product"
    folder = tmp_path / "ReasonFlux-PRM-7B"
    folder.mkdir()
    stage_qwen(HEAD, qwen_layout("<extra_0>"), architecture=ARCHITECTURE)(folder)
    named = propose(Checkpoint.open(folder)).recipe
    assert (named.name, named.system, named.context_limit) == ("reasonflux-prm", None, None)


def test_a_checkpoint_with_another_head_is_no_qwen_prm(tmp_path: Path) -> None:
    one_layer = HEAD.__class__(prefix="score", outputs=2)
    stage_qwen(one_layer, qwen_layout("<extra_0>"), architecture=ARCHITECTURE)(tmp_path)
    with pytest.raises(RecipeMismatch, match=r"score\.0\.weight is missing; .* \[32, 32\]"):
        propose(Checkpoint.open(tmp_path))
