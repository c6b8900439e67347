"""A head over actions against transformers' own token classifier, read as its file says."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForTokenClassification

from prm.backends.vllm_wire import question
from prm.chat import ChatTokenizer
from prm.checkpoint import Checkpoint
from prm.engine.attention import WholeSequences
from prm.engine.heads import HeadModel
from prm.errors import InvalidInput
from prm.families.base import LogprobRead, RecipeMismatch
from prm.families.repirl import RepirlRecipe, propose
from prm.manifest import ModelVersion
from prm.steps import join_steps
from prm.types import Message
from tests.own_heads import qwen_layout, stage_qwen
from tests.published import publish_prm, score_items, scorer_of

pytestmark = pytest.mark.anyio

ARCHITECTURE = "Qwen2ForTokenClassification"
VOCAB = qwen_layout().get_vocab_size()
RECIPE = RepirlRecipe(outputs=VOCAB)
ITEMS: Sequence[tuple[str, Sequence[str]]] = (
    ("Janet's ducks lay 16 eggs per day.", ["Step 1: 16 - 3 = 13", "Step 2: 13 * 2 = $26.", "26"]),
    ("1+1", ["2"]),
    ("naïve", ["a", "b →", "c.", " d "]),
)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    stage = stage_qwen(
        RECIPE.head, qwen_layout(), architecture=ARCHITECTURE, config={"num_labels": VOCAB}
    )
    return publish_prm(tmp_path_factory.mktemp("models"), "actions", "repirl", RECIPE, stage)


def literal_rewards(folder: Path, problem: str, response: str) -> list[tuple[int, float]]:
    """Where each token of the response begins, and tanh of its own label one position before it."""
    tokenizer = ChatTokenizer(folder)
    prompt = tokenizer.encode_prompt((Message(role="user", content=problem),))
    answer = tokenizer.encode_response(response)
    ids = torch.tensor([*prompt, *answer.ids])
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    found = [float(logits[at - 1, ids[at]].tanh()) for at in range(len(prompt), len(ids))]
    return [(start, value) for (start, _), value in zip(answer.char_offsets, found, strict=True)]


async def test_a_steps_score_is_the_sum_of_its_tokens_rewards(version: ModelVersion) -> None:
    found = await score_items(scorer_of(version), ITEMS)
    seen: list[float] = []
    for (problem, texts), scored in zip(ITEMS, found, strict=True):
        response, steps = join_steps(texts, version.manifest.step_separator)
        rewards = literal_rewards(version.folder, problem, response)
        begins = [0, *(step.char_end for step in steps[:-1])]
        wanted = [
            sum(value for start, value in rewards if begin <= start < step.char_end)
            for begin, step in zip(begins, steps, strict=True)
        ]
        assert [step.raw for step in scored.step_scores] == pytest.approx(wanted, abs=1e-4)
        assert scored.step_scores[-1].cumulative == pytest.approx(sum(wanted), abs=1e-4)
        seen += wanted
    assert max(seen) - min(seen) > 0.5, "scores that are all alike would prove nothing"


def test_an_output_of_each_target_is_that_of_the_whole_head(version: ModelVersion) -> None:
    model = HeadModel.load(version.folder, RECIPE.head)
    ids = torch.tensor([5, 9, 3, 7])
    hidden = model.hidden(ids, WholeSequences([4], model.device))
    rows = model.head_values(hidden)
    torch.testing.assert_close(model.target_logprobs(hidden, ids), rows[torch.arange(4), ids])


def test_no_vllm_server_is_asked_for_a_number_per_id_and_token() -> None:
    with pytest.raises(InvalidInput, match="Rung's own engine alone"):
        question(LogprobRead(model="m", ids=(1, 2), first=1, raw=True))


def test_a_classifier_of_fewer_labels_is_of_another_kind(tmp_path: Path) -> None:
    layout = RepirlRecipe(outputs=VOCAB - 1).head
    stage_qwen(layout, qwen_layout(), architecture=ARCHITECTURE)(tmp_path)
    with pytest.raises(RecipeMismatch, match=f"has {VOCAB - 1} outputs; this kind has one per id"):
        propose(Checkpoint.open(tmp_path))
