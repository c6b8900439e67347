"""RLHFlow's PRMs against the authors' script: a growing chat per step, third token from its end."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput, ModelFolderError
from prm.families.base import HeadRead, RecipeMismatch
from prm.families.rlhflow import PLACEHOLDER, SPEC, RlhflowRecipe, propose
from prm.manifest import ModelVersion
from prm.steps import join_steps
from prm.types import Message, Trajectory
from tests.layouts import (
    LLAMA_CONTROL,
    LLAMA_TEMPLATE,
    byte_level_layout,
    save_layout,
    sentencepiece_layout,
)
from tests.published import publish_prm, random_lm, score_items, scorer_of

pytestmark = pytest.mark.anyio

ITEMS: Sequence[tuple[str, Sequence[str]]] = (
    ("Janet's ducks lay 16 eggs.", ["Step 1: 16 - 3 = 13", "Step 2: 13 * 2 = $26.", "26 ки"]),
    ("1+1", ["2"]),
    ("+", ["+", "-", " + \n", "\n\n+\n\n", "a +\n\n- b", "assistant\n\n+"]),
    ("naïve → 7", ["+ " * 20, "− ≠ -", "x"]),
)


def script_scores(folder: Path, problem: str, steps: Sequence[str], joint: str) -> list[float]:
    """One chat and one forward per step, as `math-rm/prm_evaluate.py` does."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    candidates = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]
    chat: list[dict[str, str]] = []
    scores = []
    for k, step in enumerate(text.strip() for text in steps):
        chat.append({"role": "user", "content": problem + joint + step if k == 0 else step})
        chat.append({"role": "assistant", "content": "+"})
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        with torch.no_grad():
            logits = model(ids).logits[:, -3, candidates]
        scores.append(logits.softmax(dim=-1)[0, 0].item())
    return scores


def stage(template: str | None = LLAMA_TEMPLATE) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tokenizer = byte_level_layout(LLAMA_CONTROL, bos="<|begin_of_text|>")
        random_lm("llama", vocab=tokenizer.get_vocab_size()).save_pretrained(folder)
        save_layout(tokenizer, folder, template=template, bos="<|begin_of_text|>", eos="<|eot_id|>")

    return write


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    return publish_prm(
        tmp_path_factory.mktemp("models"), "prm", SPEC.name, RlhflowRecipe(), stage()
    )


async def test_one_forward_gives_the_scores_of_one_chat_per_step(deepseek: ModelVersion) -> None:
    for scored, (problem, steps) in zip(
        await score_items(scorer_of(deepseek), ITEMS), ITEMS, strict=True
    ):
        ours = [step.score for step in scored.step_scores]
        theirs = script_scores(deepseek.folder, problem, steps, " ")
        assert ours == pytest.approx(theirs, abs=1e-4)
        assert len(theirs) == 1 or max(theirs) - min(theirs) > 0.01
        assert scored.aggregates["mean"] == pytest.approx(sum(theirs) / len(theirs), abs=1e-4)


async def test_the_joint_of_problem_and_first_step_is_a_setting(tmp_path: Path) -> None:
    recipe = RlhflowRecipe(name="rlhflow-mistral", problem_joint="\n\n")
    version = publish_prm(tmp_path, "mistral-data", SPEC.name, recipe, stage(), separator="\n")
    scorer = scorer_of(version)
    assert scorer.recipe.label == "rlhflow-mistral/1"
    problem, steps = ITEMS[0]
    (scored,) = await score_items(scorer, [(problem, steps)])
    ours = [step.score for step in scored.step_scores]
    assert ours == pytest.approx(script_scores(version.folder, problem, steps, "\n\n"), abs=1e-4)
    assert ours != pytest.approx(script_scores(version.folder, problem, steps, " "), abs=1e-4)


def test_the_read_ends_before_the_last_answer(deepseek: ModelVersion) -> None:
    tokenizer = ChatTokenizer(deepseek.folder)
    family = SPEC.load(deepseek, tokenizer)
    response, steps = join_steps(["+", "-"], "\n\n")
    encoded = family.encode(
        Trajectory(messages=(Message(role="user", content="0"),), response=response, steps=steps)
    )
    (read,) = encoded.reads
    assert isinstance(read, HeadRead)
    assert read.positions[-1] == len(read.ids) - 1
    assert read.ids[read.positions[0] + 1] == tokenizer.token_id("+") == read.labels[0]


@pytest.mark.parametrize(
    ("problem", "step", "field", "message"),
    [
        ("<|eot_id|>", "1", "messages[0].content", "control token '<|eot_id|>' at character 0"),
        ("0", "1 <|eot_id|>", "steps[1]", "control token '<|eot_id|>' at character 2"),
        ("0", PLACEHOLDER, "steps[1]", "private-use character U+E000 at character 0"),
        ("0", "1" * 1100, None, "1024"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_its_field(
    deepseek: ModelVersion, problem: str, step: str, field: str | None, message: str
) -> None:
    family = SPEC.load(deepseek, ChatTokenizer(deepseek.folder))
    response, steps = join_steps(["0", step], "\n\n")
    messages = (Message(role="user", content=problem),)
    with pytest.raises(InvalidInput) as refused:
        family.encode(Trajectory(messages=messages, response=response, steps=steps))
    assert refused.value.param == field
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] }}", "writes 0 answers for 2 steps"),
        (
            "{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}",
            "writes 4 answers for 2 steps",
        ),
        ("{% for m in messages %}={{ m['content'] }}={% endfor %}", None),
    ],
)
def test_a_template_in_which_answers_cannot_be_found_is_refused(
    tmp_path: Path, template: str, message: str | None
) -> None:
    version = publish_prm(tmp_path, "odd", SPEC.name, RlhflowRecipe(), stage(template))
    if message is None:
        SPEC.load(version, ChatTokenizer(version.folder))
        return
    with pytest.raises(ModelFolderError, match=message):
        SPEC.load(version, ChatTokenizer(version.folder))


def test_an_answer_that_merges_with_what_stands_around_it_is_refused(tmp_path: Path) -> None:
    def stage_sentencepiece(folder: Path) -> None:
        random_lm("llama", vocab=512).save_pretrained(folder)
        template = "{% for m in messages %} {{ m['content'] }}{% endfor %}"
        save_layout(sentencepiece_layout(), folder, template=template, bos="<s>", eos="</s>")

    recipe = RlhflowRecipe(good="e", bad="p")
    version = publish_prm(tmp_path, "odd", SPEC.name, recipe, stage_sentencepiece)
    with pytest.raises(ModelFolderError, match=r"'e' is 2 tokens here"):
        SPEC.load(version, ChatTokenizer(version.folder))


def test_a_checkpoint_is_proposed_by_its_chat_and_certain_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "Llama3.1-8B-PRM-Mistral-Data"
    folder.mkdir()
    stage()(folder)
    proposal = propose(Checkpoint.open(folder))
    assert proposal.recipe == RlhflowRecipe(name="rlhflow-mistral")
    assert (proposal.is_certain, proposal.step_separator) == (True, "\n")
    other = folder.rename(tmp_path / "model")
    proposal = propose(Checkpoint.open(other))
    assert proposal.recipe == RlhflowRecipe()
    assert (proposal.is_certain, proposal.step_separator) == (False, "\n\n")
    (other / "chat_template.jinja").unlink()
    with pytest.raises(RecipeMismatch, match="this folder has none"):
        propose(Checkpoint.open(other))
