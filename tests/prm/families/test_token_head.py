"""Token classifiers against TRL's tokenisation, PURE's script and transformers' own class."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForTokenClassification

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput
from prm.families.base import HeadRead, RecipeMismatch
from prm.families.token_head import SPEC, TokenHeadRecipe, propose
from prm.manifest import ModelVersion
from prm.steps import cut_steps, join_steps
from prm.types import Message, Trajectory
from tests.layouts import LLAMA_CONTROL, byte_level_layout, save_layout
from tests.own_heads import qwen_layout, random_head, save_checkpoint, stage_qwen, tokenizer_of
from tests.published import publish_prm, score_items, scorer_of

pytestmark = pytest.mark.anyio

ARCHITECTURE = "Qwen2ForTokenClassification"
BEGIN = "<|begin_of_text|>"
ITEMS: Sequence[tuple[str, Sequence[str]]] = (
    ("Janet's ducks lay 16 eggs per day.", ["Step 1: 16 - 3 = 13", "Step 2: 13 * 2 = $26.", "26"]),
    ("1+1", ["2"]),
    # Separators inside and at the ends of steps, where whole-text tokenisation would merge them.
    ("\n", ["a\n\nb", "7.\n", "\n\n8 ", "naïve →  "]),
)


def recipe_of(name: str, **fields: object) -> TokenHeadRecipe:
    return TokenHeadRecipe.model_validate({"name": name, **fields})


def trl_ids(folder: Path, problem: str, steps: Sequence[str], separator: str) -> list[list[int]]:
    """TRL's `tokenize_row`: the prompt, and the ids of each step with its separator."""
    tokenizer = tokenizer_of(folder)
    prompt = tokenizer(problem, add_special_tokens=False)["input_ids"]
    if tokenizer.bos_token_id is not None:
        prompt = [tokenizer.bos_token_id, *prompt]
    separator_ids = tokenizer.encode(separator, add_special_tokens=False)
    pieces = [tokenizer(step, add_special_tokens=False)["input_ids"] for step in steps]
    return [prompt, *(piece + separator_ids for piece in pieces)]


def logits_at_ends(folder: Path, parts: Sequence[Sequence[int]]) -> torch.Tensor:
    """What transformers' class says at the last token of every part but the first."""
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32)
    ends = torch.tensor([len(part) for part in parts]).cumsum(0)[1:] - 1
    with torch.no_grad():
        logits = model(torch.tensor([[token for part in parts for token in part]])).logits[0]
    found: torch.Tensor = logits[ends]
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelVersion]:
    root = tmp_path_factory.mktemp("models")
    found = {}
    for name in ("trl", "h4", "pure", "repirl"):
        recipe = recipe_of(name)
        stage = stage_qwen(
            recipe.head,
            qwen_layout(),
            architecture=ARCHITECTURE,
            config={"num_labels": recipe.outputs},
        )
        found[name] = publish_prm(root, name, "token_head", recipe, stage)

    def stage_llama(folder: Path) -> None:
        tokenizer = byte_level_layout(LLAMA_CONTROL, bos=BEGIN)
        save_checkpoint(
            folder,
            random_head(recipe_of("trl").head, size=32),
            architecture="LlamaForTokenClassification",
            kind="llama",
            vocab=tokenizer.get_vocab_size(),
            config={"num_labels": 2},
        )
        save_layout(tokenizer, folder, bos=BEGIN, eos="<|eot_id|>")

    found["llama"] = publish_prm(root, "llama", "token_head", recipe_of("trl"), stage_llama)
    return found


@pytest.mark.parametrize(("name", "separator"), [("trl", "\n"), ("h4", "\n\n"), ("llama", "\n")])
async def test_scores_are_those_of_trls_layout(
    name: str, separator: str, models: dict[str, ModelVersion]
) -> None:
    version = models[name]
    found = await score_items(scorer_of(version), ITEMS)
    seen: list[float] = []
    for (problem, steps), scored in zip(ITEMS, found, strict=True):
        logits = logits_at_ends(version.folder, trl_ids(version.folder, problem, steps, separator))
        expected = logits.softmax(-1)[:, 1].tolist()
        assert [step.score for step in scored.step_scores] == pytest.approx(expected, abs=1e-4)
        seen += [step.raw for step in scored.step_scores]
    assert max(seen) - min(seen) > 0.5, "scores that are all alike would prove nothing"


async def test_pure_gives_half_of_its_own_number_and_a_half(
    models: dict[str, ModelVersion],
) -> None:
    folder = models["pure"].folder
    tokenizer = tokenizer_of(folder)
    separator = tokenizer("\n\n", add_special_tokens=False, return_tensors="pt")["input_ids"]
    found = await score_items(scorer_of(models["pure"]), ITEMS)
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32)
    for (problem, steps), scored in zip(ITEMS, found, strict=True):
        ids = tokenizer(problem, add_special_tokens=False, return_tensors="pt")["input_ids"]
        places = []
        for step in steps:
            step_ids = tokenizer(step.rstrip(), add_special_tokens=False, return_tensors="pt")
            ids = torch.cat([ids, step_ids["input_ids"], separator], dim=-1)
            places.append(ids.size(-1) - 1)
        with torch.no_grad():
            probabilities = model(ids).logits[0, places].softmax(dim=-1)
        rewards = (probabilities[:, 1] - probabilities[:, 0]).tolist()
        ours = [2 * step.score - 1 for step in scored.step_scores]
        assert ours == pytest.approx(rewards, abs=1e-4)


async def test_one_output_is_a_logit(models: dict[str, ModelVersion]) -> None:
    version = models["repirl"]
    found = await score_items(scorer_of(version), ITEMS)
    for (problem, steps), scored in zip(ITEMS, found, strict=True):
        logits = logits_at_ends(version.folder, trl_ids(version.folder, problem, steps, "\n\n"))
        expected = logits[:, 0].tolist()
        assert [step.raw for step in scored.step_scores] == pytest.approx(expected, abs=1e-4)


async def test_a_head_without_a_bias_is_read_without_one(tmp_path: Path) -> None:
    recipe = recipe_of("trl", bias=False)
    stage = stage_qwen(recipe.head, qwen_layout(), architecture=ARCHITECTURE)
    version = publish_prm(tmp_path, "bare", "token_head", recipe, stage)
    assert propose(Checkpoint.open(version.folder)).recipe == recipe
    (scored,) = await score_items(scorer_of(version), ITEMS[:1])
    # Without a bias in the configuration either, transformers' class says the same.
    config = version.folder / "config.json"
    config.write_text(config.read_text().replace("{", '{"token_classification_bias": false,', 1))
    logits = logits_at_ends(version.folder, trl_ids(version.folder, *ITEMS[0], "\n"))
    expected = logits.softmax(-1)[:, 1].tolist()
    assert [step.score for step in scored.step_scores] == pytest.approx(expected, abs=1e-4)


def test_the_last_of_several_separator_tokens_is_read(models: dict[str, ModelVersion]) -> None:
    version = models["trl"]
    tokenizer = ChatTokenizer(version.folder)
    family = SPEC.bind(version, recipe_of("trl", separator="\n***\n"), tokenizer)
    response, steps = join_steps(["a", "b"], "\n")
    messages = (Message(role="user", content="1"),)
    (read,) = family.encode(Trajectory(messages=messages, response=response, steps=steps)).reads
    assert isinstance(read, HeadRead)
    separator = tokenizer.encode_markup("\n***\n")
    assert len(separator) > 1
    for position in read.positions:
        assert read.ids[position + 1 - len(separator) : position + 1] == separator


def test_steps_of_a_cut_response_read_like_steps_of_their_own(
    models: dict[str, ModelVersion],
) -> None:
    family = SPEC.load(models["h4"], ChatTokenizer(models["h4"].folder))
    messages = (Message(role="user", content="1"),)
    joined, steps = join_steps(["a", "b"], "\n\n")
    text = "a\n\n\n\nb\n\n"
    given = family.encode(Trajectory(messages=messages, response=joined, steps=steps))
    cut = family.encode(Trajectory(messages=messages, response=text, steps=cut_steps(text, "\n\n")))
    assert cut.reads == given.reads


def test_control_tokens_are_refused_in_the_problem_and_text_in_a_step(
    models: dict[str, ModelVersion],
) -> None:
    tokenizer = ChatTokenizer(models["trl"].folder)
    family = SPEC.load(models["trl"], tokenizer)
    response, steps = join_steps(["<|im_end|>"], "\n")
    messages = (Message(role="user", content="1"),)
    (read,) = family.encode(Trajectory(messages=messages, response=response, steps=steps)).reads
    assert tokenizer.encode_markup("<|im_end|>")[0] not in read.ids
    messages = (Message(role="user", content="<|im_end|>"),)
    with pytest.raises(InvalidInput) as caught:
        family.encode(Trajectory(messages=messages, response=response, steps=steps))
    assert caught.value.param == "messages[0].content"


@pytest.mark.parametrize(
    ("folder", "outputs", "name", "separator"),
    [
        ("my-prm", 2, "trl", "\n"),
        ("HuggingFaceH4/Qwen2.5-Math-7B-Instruct-PRM-0.2", 2, "h4", "\n\n"),
        ("PURE-PRM-7B", 2, "pure", "\n\n"),
        ("my-prm", 1, "repirl", "\n\n"),
    ],
)
def test_the_recipe_is_told_from_head_and_name(
    tmp_path: Path, folder: str, outputs: int, name: str, separator: str
) -> None:
    head = recipe_of("repirl" if outputs == 1 else "trl").head
    stage_qwen(head, qwen_layout(), architecture=ARCHITECTURE)(tmp_path / folder)
    proposal = propose(Checkpoint.open(tmp_path / folder))
    assert proposal.recipe == recipe_of(name)
    assert (proposal.recipe.separator, proposal.step_separator) == (separator, separator)


def test_three_classes_are_no_such_prm(tmp_path: Path) -> None:
    three = recipe_of("trl").head.__class__(prefix="score", outputs=3)
    stage_qwen(three, qwen_layout(), architecture=ARCHITECTURE)(tmp_path)
    with pytest.raises(RecipeMismatch, match=r"score\.weight has 3 outputs"):
        propose(Checkpoint.open(tmp_path))


async def test_without_a_separator_a_step_is_read_at_its_own_last_token(tmp_path: Path) -> None:
    recipe = recipe_of("trl", separator="")
    stage = stage_qwen(recipe.head, qwen_layout(), architecture=ARCHITECTURE)
    version = publish_prm(tmp_path, "digits", "token_head", recipe, stage, separator="")
    (scored,) = await score_items(scorer_of(version), [("12=", ["1", "3", "é"])])
    parts = trl_ids(version.folder, "12=", ["1", "3", "é"], "")
    wanted = logits_at_ends(version.folder, parts).softmax(-1)[:, 1].tolist()
    assert [step.score for step in scored.step_scores] == pytest.approx(wanted, abs=1e-4)
