"""Math-Shepherd and ER-PRM against their model cards' own way of reading them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput, ModelFolderError
from prm.families.base import HeadRead, RecipeMismatch
from prm.families.math_shepherd import ER_PRM, SPEC, MathShepherdRecipe, propose
from prm.manifest import ModelVersion
from prm.steps import cut_steps, join_steps
from prm.types import Message, Trajectory
from tests.layouts import (
    LLAMA_CONTROL,
    LLAMA_TEMPLATE,
    byte_level_layout,
    save_layout,
    sentencepiece_layout,
    unigram_layout,
)
from tests.published import publish_prm, random_lm, score_items, scorer_of

pytestmark = pytest.mark.anyio

# The ids that the model card names, on a tokenizer small enough for a test.
CARD_IDS = {648: "▁+", 387: "▁-", 12902: "▁ки"}
OWN_IDS = MathShepherdRecipe(tag_id=None, good_id=None, bad_id=None)
ITEMS: Sequence[tuple[str, Sequence[str]]] = (
    ("Janet's ducks lay 16 eggs per day.", ["Step 1: 16 - 3 = 13", "Step 2: 13 * 2 = $26.", "26"]),
    ("1+1", ["2"]),
    # Near the marker: signs, a word that ends in it, no space before it, bytes without a piece.
    ("- + -", ["руки + -", "x = -3 +", "(ки", "ки at the start", "naïve → 7\n\n8"]),
    ("", ["  white space around  ", "Step 2:"]),
)


def card_scores(folder: Path, problem: str, steps: Sequence[str], plus: str) -> list[float]:
    """As the card does it: the text, one encode, labels at every tag id, softmax, the first."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    step_tag = "ки"
    if plus == "+":
        candidates = tokenizer.encode("+ -")[1:]
        tag_id = tokenizer.encode(f" {step_tag}", add_special_tokens=False)[-1]
    else:
        candidates = [tokenizer.encode(" +")[-1], tokenizer.encode(" -")[-1]]
        tag_id = tokenizer.encode(f" {step_tag}")[-1]
    output = "\n".join(f"{step.strip()} {step_tag}" for step in steps)
    ids = torch.tensor([tokenizer.encode(f"{problem} {output}")])
    with torch.no_grad():
        logits = model(ids).logits[:, :, candidates]
    return [float(score) for score in logits.softmax(dim=-1)[:, :, 0][ids == tag_id]]


def stage(tokenizer: Tokenizer, *, kind: str = "mistral") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        random_lm(kind, vocab=tokenizer.get_vocab_size()).save_pretrained(folder)
        save_layout(tokenizer, folder, bos="<s>", eos="</s>")

    return write


def stage_llama3(folder: Path) -> None:
    tokenizer = byte_level_layout(LLAMA_CONTROL, bos="<|begin_of_text|>")
    random_lm("llama", vocab=tokenizer.get_vocab_size()).save_pretrained(folder)
    save_layout(
        tokenizer, folder, template=LLAMA_TEMPLATE, bos="<|begin_of_text|>", eos="<|eot_id|>"
    )


@pytest.fixture(scope="module")
def shepherd(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    root = tmp_path_factory.mktemp("models")
    tokenizer = sentencepiece_layout(CARD_IDS, size=13_000)
    recipe = MathShepherdRecipe()
    return publish_prm(root, "shepherd", SPEC.name, recipe, stage(tokenizer), separator="\n")


async def test_math_shepherd_scores_are_the_cards(shepherd: ModelVersion) -> None:
    for scored, (problem, steps) in zip(
        await score_items(scorer_of(shepherd), ITEMS), ITEMS, strict=True
    ):
        ours = [step.score for step in scored.step_scores]
        theirs = card_scores(shepherd.folder, problem, steps, "+")
        assert len(ours) == len(steps)
        assert ours == pytest.approx(theirs, abs=1e-4)
        assert max(theirs) - min(theirs) > 0.01 or len(theirs) == 1


async def test_the_other_kind_of_sentencepiece_model_reads_as_well(tmp_path: Path) -> None:
    version = publish_prm(tmp_path, "unigram", SPEC.name, OWN_IDS, stage(unigram_layout()))
    for scored, (problem, steps) in zip(
        await score_items(scorer_of(version), ITEMS), ITEMS, strict=True
    ):
        ours = [step.score for step in scored.step_scores]
        assert ours == pytest.approx(card_scores(version.folder, problem, steps, "+"), abs=1e-4)


async def test_er_prm_scores_are_its_scripts(tmp_path: Path) -> None:
    version = publish_prm(tmp_path, "er-prm", SPEC.name, ER_PRM, stage_llama3, separator="\n")
    scorer = scorer_of(version)
    assert scorer.recipe.label == "er-prm/1"
    for scored, (problem, steps) in zip(await score_items(scorer, ITEMS), ITEMS, strict=True):
        ours = [step.score for step in scored.step_scores]
        assert ours == pytest.approx(card_scores(version.folder, problem, steps, " +"), abs=1e-4)


async def test_a_sliding_window_bounds_what_is_read_and_changes_nothing_below(
    tmp_path: Path,
) -> None:
    def stage_window(folder: Path) -> None:
        tokenizer = sentencepiece_layout()
        random_lm("mistral", vocab=512, sliding_window=128).save_pretrained(folder)
        save_layout(tokenizer, folder, bos="<s>", eos="</s>")

    version = publish_prm(tmp_path, "window", SPEC.name, OWN_IDS, stage_window)
    scorer = scorer_of(version)
    (scored,) = await score_items(scorer, [("x" * 60, ["y" * 50])])
    theirs = card_scores(version.folder, "x" * 60, ["y" * 50], "+")
    assert [step.score for step in scored.step_scores] == pytest.approx(theirs, abs=1e-4)
    with pytest.raises(InvalidInput, match=r"reads at most 128"):
        await score_items(scorer, [("x" * 60, ["y" * 80])])


def test_the_read_ends_at_the_last_tag_and_begins_with_bos(shepherd: ModelVersion) -> None:
    tokenizer = ChatTokenizer(shepherd.folder)
    family = SPEC.load(shepherd, tokenizer)
    response, steps = join_steps(["1", "2"], "\n")
    encoded = family.encode(
        Trajectory(messages=(Message(role="user", content="0"),), response=response, steps=steps)
    )
    (read,) = encoded.reads
    assert isinstance(read, HeadRead)
    assert read.labels == (648, 387)
    assert [read.ids[position] for position in read.positions] == [12902, 12902]
    assert read.positions[-1] == len(read.ids) - 1
    assert tokenizer.decode(read.ids[:1]) == ""
    assert read.ids[0] == tokenizer.token_id("<s>")


@pytest.mark.parametrize(
    ("problem", "steps", "is_cut", "field"),
    [
        ("one ки two", ["3"], False, "messages[0].content"),
        ("ends in ки", ["3"], False, "messages[0].content"),
        ("1", ["2", "a ки b"], False, "steps[1]"),
        ("1", ["2", "a ки", "3"], False, "steps[1]"),
        ("1", ["2", "a ки b"], True, "response"),
        ("1", ["2 </s> 3"], False, "steps[0]"),
        ("<s>", ["2"], False, "messages[0].content"),
    ],
)
def test_marker_text_in_a_text_is_refused_with_its_field(
    shepherd: ModelVersion, problem: str, steps: list[str], is_cut: bool, field: str
) -> None:
    family = SPEC.load(shepherd, ChatTokenizer(shepherd.folder))
    response, placed = join_steps(steps, "\n")
    if is_cut:
        placed = cut_steps(response, "\n")
    messages = (Message(role="user", content=problem),)
    with pytest.raises(InvalidInput) as refused:
        family.encode(Trajectory(messages=messages, response=response, steps=placed, is_cut=is_cut))
    assert refused.value.param == field


def test_more_turns_than_the_problem_are_refused(shepherd: ModelVersion) -> None:
    family = SPEC.load(shepherd, ChatTokenizer(shepherd.folder))
    response, steps = join_steps(["1"], "\n")
    messages = (Message(role="system", content="x"), Message(role="user", content="0"))
    with pytest.raises(InvalidInput, match="these turns are system, user"):
        family.encode(Trajectory(messages=messages, response=response, steps=steps))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (MathShepherdRecipe(), r"id 12902 in recipe math-shepherd/1; here it is \d+"),
        (OWN_IDS.model_copy(update={"tag": " §§"}), r"tag ' §§' behind a step is \d+ tokens"),
        (OWN_IDS.model_copy(update={"good_id": 3}), r"'\+' is one token with id 3 in the recipe"),
        (OWN_IDS.model_copy(update={"bad": "no"}), r"'no' is \d tokens here"),
    ],
)
def test_a_tokenizer_of_another_layout_is_refused(
    tmp_path: Path, recipe: MathShepherdRecipe, message: str
) -> None:
    version = publish_prm(tmp_path, "other", SPEC.name, recipe, stage(sentencepiece_layout()))
    with pytest.raises(ModelFolderError, match=message):
        SPEC.load(version, ChatTokenizer(version.folder))


def test_a_checkpoint_is_proposed_by_its_tokenizer_and_certain_by_its_name(
    shepherd: ModelVersion, tmp_path: Path
) -> None:
    proposal = propose(Checkpoint.open(shepherd.folder))
    assert proposal.recipe == MathShepherdRecipe()
    assert proposal.is_certain
    stage_llama3(tmp_path)
    proposal = propose(Checkpoint.open(tmp_path))
    assert proposal.recipe == ER_PRM
    assert not proposal.is_certain
    stage(sentencepiece_layout())(tmp_path)
    with pytest.raises(RecipeMismatch, match="neither Math-Shepherd's ids 12902, 648, 387"):
        propose(Checkpoint.open(tmp_path))
