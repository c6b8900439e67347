"""PQM against its authors' best-of-n script."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.errors import InvalidInput, ModelFolderError
from prm.families.base import RecipeMismatch
from prm.families.pqm import HEAD, SPEC, PqmRecipe, propose
from prm.manifest import ModelVersion
from prm.steps import join_steps
from prm.types import Message, Trajectory
from tests.layouts import LLAMA_CONTROL, byte_level_layout, save_layout
from tests.own_heads import (
    WithValueHead,
    load_literal,
    random_head,
    save_checkpoint,
    tokenizer_of,
)
from tests.published import publish_prm, score_items, scorer_of

pytestmark = pytest.mark.anyio

BEGIN = "<|begin_of_text|>"
ITEMS: Sequence[tuple[str, Sequence[str]]] = (
    ("Janet's {ducks} lay 16.", ["Step 1: 16 - 3 = 13", "Step 2: 13 * 2 = $26.", "Step 3: 26"]),
    ("1+1", ["Step 1: 2"]),
    ("[PRM", ["Step 1:  PRM] [ PRM]", "Step 2: [prm]\n", "Step 12: naïve → 7"]),
)


def stage(*marker: str) -> Callable[[Path], None]:
    """As an accelerator saves TRL's wrapper, on a backbone that begins every text with a BOS."""

    def write(folder: Path) -> None:
        tokenizer = byte_level_layout((*LLAMA_CONTROL, *marker), bos=BEGIN)
        save_checkpoint(
            folder,
            random_head(HEAD, size=32),
            architecture="LlamaForCausalLM",
            kind="llama",
            vocab=tokenizer.get_vocab_size(),
            prefix="pretrained_model.",
            with_lm_head=True,
        )
        save_layout(tokenizer, folder, bos=BEGIN, eos="<|eot_id|>")

    return write


def script_scores(folder: Path, problem: str, response: str) -> list[float]:
    """As the script does it: steps cut and numbered, one encode, the value at every [PRM]."""
    tokenizer = tokenizer_of(folder)
    marker_id = tokenizer.encode("[PRM]", add_special_tokens=False)[-1]
    query = (
        "Below is an instruction that describes a task.\nWrite a response that appropriately "
        f"completes the request.\n\n### Instruction:\n{problem}\n\n### Response: Let's think step "
        "by step"
    )
    steps = [step for step in re.split(r"Step \d+:", response) if step.strip() != ""]
    steps = [f"Step {number + 1}: {step.strip()}" for number, step in enumerate(steps)]
    answer = " [PRM]\n".join(steps) + " [PRM]"
    ids = tokenizer.encode(f"{query}\n{answer}", add_special_tokens=False)
    model = load_literal(WithValueHead, folder)
    with torch.no_grad():
        values = model(torch.tensor([ids]))[0]
    return [float(v) for v in values[torch.tensor(ids) == marker_id]]


@pytest.fixture(scope="module")
def pqm(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    root = tmp_path_factory.mktemp("models")
    return publish_prm(root, "pqm", "pqm", PqmRecipe(), stage("[PRM]"), separator="\n")


def trajectory(*steps: str) -> Trajectory:
    response, placed = join_steps(steps, "\n")
    messages = (Message(role="user", content="1"),)
    return Trajectory(messages=messages, response=response, steps=placed)


async def test_values_are_those_of_the_script(pqm: ModelVersion) -> None:
    found = await score_items(scorer_of(pqm), ITEMS)
    seen: list[float] = []
    for (problem, steps), scored in zip(ITEMS, found, strict=True):
        expected = script_scores(pqm.folder, problem, "\n".join(steps))
        assert len(expected) == len(steps)
        raws = [step.raw for step in scored.step_scores]
        assert raws == pytest.approx(expected, abs=1e-4)
        seen += raws
    assert max(seen) - min(seen) > 0.5, "values that are all alike would prove nothing"


def test_steps_with_and_without_numbers_read_the_same(pqm: ModelVersion) -> None:
    family = SPEC.load(pqm, ChatTokenizer(pqm.folder))
    plain = family.encode(trajectory("a", " b ", "Step one: c"))
    numbered = family.encode(trajectory("Step 1: a", "Step 7: b", "Step 3: Step one: c"))
    assert plain == numbered
    bare = SPEC.bind(pqm, PqmRecipe(number_steps=False), ChatTokenizer(pqm.folder))
    assert bare.encode(trajectory("a", "b")) != family.encode(trajectory("a", "b"))


def test_a_step_that_is_nothing_but_its_number_is_refused(pqm: ModelVersion) -> None:
    family = SPEC.load(pqm, ChatTokenizer(pqm.folder))
    with pytest.raises(InvalidInput, match="step 1 is nothing but its number") as caught:
        family.encode(trajectory("a", "Step 2: "))
    assert caught.value.param == "steps[1]"


def test_the_marker_in_a_text_is_refused(pqm: ModelVersion) -> None:
    family = SPEC.load(pqm, ChatTokenizer(pqm.folder))
    with pytest.raises(InvalidInput, match=r"step marker '\[PRM\]' at character 2") as caught:
        family.encode(trajectory("a", "b [PRM]"))
    assert caught.value.param == "steps[1]"


def test_the_recipe_is_told_from_head_and_vocabulary(pqm: ModelVersion, tmp_path: Path) -> None:
    proposal = propose(Checkpoint.open(pqm.folder))
    marker_id = ChatTokenizer(pqm.folder).token_id("[PRM]")
    assert proposal.recipe == PqmRecipe(marker_id=marker_id)
    assert proposal.aggregation == "min"
    stage()(tmp_path)
    with pytest.raises(RecipeMismatch, match=r"no token '\[PRM\]'"):
        propose(Checkpoint.open(tmp_path))
    with pytest.raises(ModelFolderError, match=r"'\[PRM\]' is \d tokens here"):
        SPEC.bind(
            publish_prm(tmp_path / "m", "bare", "pqm", PqmRecipe(), stage()),
            PqmRecipe(),
            ChatTokenizer(tmp_path),
        )
