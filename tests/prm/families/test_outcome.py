"""Outcome reward models against Qwen2.5-Math-RM's recipe and transformers' own class."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput
from prm.families.base import RecipeMismatch
from prm.families.outcome import SPEC, OutcomeRecipe, propose
from prm.manifest import ModelVersion
from prm.steps import cut_steps, join_steps
from prm.types import Message, Trajectory
from tests.layouts import LLAMA_CONTROL, LLAMA_TEMPLATE, byte_level_layout, save_layout
from tests.own_heads import (
    ProcessRewardModel,
    load_literal,
    qwen_layout,
    random_head,
    save_checkpoint,
    stage_qwen,
    tokenizer_of,
)
from tests.published import publish_prm, score_items, scorer_of

pytestmark = pytest.mark.anyio

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
QWEN_RM = OutcomeRecipe.model_validate({"name": "qwen-math-rm"})
PLAIN = OutcomeRecipe()
BEGIN = "<|begin_of_text|>"
ITEMS: Sequence[tuple[str, Sequence[str]]] = (
    ("Janet's ducks lay 16 eggs per day.", ["Step 1: 16 - 3 = 13", "Step 2: 13 * 2 = $26.", "26"]),
    ("1+1", ["2"]),
    ("", ["<|im_end|", "assistant\n", "naïve → 7"]),
)


def chat_ids(folder: Path, problem: str, response: str, system: str | None) -> torch.Tensor:
    """The chat as the cards write it: rendered, then encoded without special tokens."""
    tokenizer = tokenizer_of(folder)
    messages = [{"role": "user", "content": problem}, {"role": "assistant", "content": response}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    ids = tokenizer.encode(text, return_tensors="pt", add_special_tokens=False)
    assert isinstance(ids, torch.Tensor)
    return ids


def qwen_rm_value(folder: Path, problem: str, response: str) -> float:
    """As Qwen2.5-Math-RM's card does it: the head's output at the last token."""
    model = load_literal(ProcessRewardModel, folder)
    with torch.no_grad():
        return float(model(chat_ids(folder, problem, response, SYSTEM))[0, -1, 0])


def classifier_value(folder: Path, problem: str, response: str) -> float:
    """As transformers' class does it, which finds the last token by itself."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return float(model(chat_ids(folder, problem, response, None)).logits[0, 0])


@pytest.fixture(scope="module")
def qwen_rm(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    stage = stage_qwen(
        QWEN_RM.head,
        qwen_layout(),
        architecture="Qwen2ForRewardModel",
        with_lm_head=True,
        config={"num_labels": 1},
    )
    return publish_prm(tmp_path_factory.mktemp("models"), "rm", "outcome", QWEN_RM, stage)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    """On Llama's template, which ends a chat with what this model pads with."""

    def stage(folder: Path) -> None:
        tokenizer = byte_level_layout(LLAMA_CONTROL, bos=BEGIN)
        save_checkpoint(
            folder,
            random_head(PLAIN.head, size=32),
            architecture="LlamaForSequenceClassification",
            kind="llama",
            vocab=tokenizer.get_vocab_size(),
            config={"num_labels": 1, "pad_token_id": tokenizer.token_to_id("<|eot_id|>")},
        )
        save_layout(tokenizer, folder, template=LLAMA_TEMPLATE, bos=BEGIN, eos="<|eot_id|>")

    return publish_prm(tmp_path_factory.mktemp("models"), "cls", "outcome", PLAIN, stage)


async def test_qwen_math_rm_scores_the_whole_response_as_its_card_does(
    qwen_rm: ModelVersion,
) -> None:
    found = await score_items(scorer_of(qwen_rm), ITEMS)
    for (problem, steps), scored in zip(ITEMS, found, strict=True):
        response = "\n\n".join(steps)
        (only,) = scored.step_scores
        assert only.raw == pytest.approx(qwen_rm_value(qwen_rm.folder, problem, response), abs=1e-4)
        (step,) = scored.trajectory.steps
        assert (step.char_start, step.char_end, step.text) == (0, len(response), response)
        assert scored.score == only.score
    raws = [scored.step_scores[0].raw for scored in found]
    assert max(raws) - min(raws) > 0.1, "values that are all alike would prove nothing"


async def test_a_sequence_classifier_is_read_where_transformers_reads_it(
    classifier: ModelVersion,
) -> None:
    found = await score_items(scorer_of(classifier), ITEMS)
    for (problem, steps), scored in zip(ITEMS, found, strict=True):
        expected = classifier_value(classifier.folder, problem, "\n\n".join(steps))
        assert scored.step_scores[0].raw == pytest.approx(expected, abs=1e-4)


async def test_prefixes_are_scored_as_if_they_were_all(qwen_rm: ModelVersion) -> None:
    recipe = QWEN_RM.model_copy(update={"prefixes": True})
    manifest = qwen_rm.manifest.model_copy(update={"recipe": recipe.model_dump(mode="json")})
    version = ModelVersion(qwen_rm.folder, manifest)
    problem, steps = ITEMS[0]
    (scored,) = await score_items(scorer_of(version), [(problem, steps)])
    expected = [
        qwen_rm_value(qwen_rm.folder, problem, "\n\n".join(steps[: end + 1]))
        for end in range(len(steps))
    ]
    assert [step.raw for step in scored.step_scores] == pytest.approx(expected, abs=1e-4)
    assert [step.text for step in scored.trajectory.steps] == list(steps)


def test_the_response_is_read_as_it_was_given(qwen_rm: ModelVersion) -> None:
    family = SPEC.load(qwen_rm, ChatTokenizer(qwen_rm.folder))
    messages = (Message(role="user", content="1"),)
    joined, steps = join_steps(["a", "b"], "\n\n")
    spaced = "a\n\n\n\nb "
    given = Trajectory(messages=messages, response=joined, steps=steps)
    cut = Trajectory(messages=messages, response=spaced, steps=cut_steps(spaced, "\n\n"))
    assert family.encode(given).ids != family.encode(cut).ids
    whole = Trajectory(messages=messages, response=joined, steps=cut_steps(joined, "\x1f"))
    assert family.encode(whole).ids == family.encode(given).ids


def test_a_control_token_is_refused_in_any_text(qwen_rm: ModelVersion) -> None:
    family = SPEC.load(qwen_rm, ChatTokenizer(qwen_rm.folder))
    response, steps = join_steps(["a", "b<|im_end|>"], "\n\n")
    messages = (Message(role="user", content="1"),)
    with pytest.raises(InvalidInput, match="control token") as caught:
        family.encode(Trajectory(messages=messages, response=response, steps=steps))
    assert caught.value.param == "steps[1]"


def test_the_recipe_is_told_from_class_and_head(
    qwen_rm: ModelVersion, classifier: ModelVersion, tmp_path: Path
) -> None:
    for version, recipe in ((qwen_rm, QWEN_RM), (classifier, PLAIN)):
        proposal = propose(Checkpoint.open(version.folder))
        assert (proposal.recipe, proposal.aggregation) == (recipe, "last")
    two = OutcomeRecipe().head.__class__(prefix="score", outputs=2, bias=False)
    stage_qwen(two, qwen_layout(), architecture="Qwen2ForSequenceClassification")(tmp_path)
    with pytest.raises(RecipeMismatch, match=r"score\.weight is of shape \[2, 32\]; .* \[1, 32\]"):
        propose(Checkpoint.open(tmp_path))
