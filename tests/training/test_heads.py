"""A head of a PRM's own in training, against transformers' token classifier."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForTokenClassification

from prm.errors import ModelFolderError
from training.checkpoints import ModelSize, new_model, save_model
from training.data import Example
from training.heads import TrainedHead
from training.models import TrainedLM

SIZE = ModelSize(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    intermediate_size=32,
)  # fmt: skip
ALPHABET = "0123456789="
IDS = [[3, 1, 4, 1, 5], [9, 2, 6]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    save_model(new_model(SIZE, seed=0, alphabet=ALPHABET), folder, alphabet=ALPHABET)
    return folder


def spread(head: TrainedHead) -> None:
    """Weights that make every output another number."""
    with torch.no_grad():
        for weight in (score(head).weight, score(head).bias):
            weight.copy_(torch.linspace(-1, 1, weight.numel()).view(weight.shape).sin() * 3)


def score(head: TrainedHead) -> nn.Linear:
    found = head.model.score
    assert isinstance(found, nn.Linear)
    return found


def literal(folder: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return found


def test_a_new_head_says_nothing_and_learns_from_there(folder: Path) -> None:
    head = TrainedHead.load(folder, 2)
    items = [(ids, (1, len(ids) - 1)) for ids in IDS]
    assert not head.steps(items).any()
    torch.autograd.backward(head.steps(items).sum())
    gradient = score(head).weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0.01


def test_outputs_at_steps_are_those_of_the_saved_classifier(folder: Path, tmp_path: Path) -> None:
    head = TrainedHead.load(folder, 2)
    spread(head)
    head.save(tmp_path)
    wanted = torch.cat([literal(tmp_path, ids)[[0, len(ids) - 1]] for ids in IDS])
    found = head.steps([(ids, (0, len(ids) - 1)) for ids in IDS])
    torch.testing.assert_close(found.detach(), wanted, atol=1e-5, rtol=0)


def test_an_actions_output_comes_from_the_state_before_it(folder: Path, tmp_path: Path) -> None:
    vocab = TrainedLM.load(folder).engine.num_ids
    head = TrainedHead.load(folder, vocab)
    spread(head)
    head.save(tmp_path)
    examples = [
        Example(ids=tuple(ids), first=first) for ids, first in zip(IDS, (2, 1), strict=True)
    ]
    found = head.actions(examples).detach()
    for row, example in zip(found, examples, strict=True):
        logits = literal(tmp_path, list(example.ids))
        wanted = [
            float(logits[t - 1, example.ids[t]]) for t in range(example.first, len(example.ids))
        ]
        assert row.tolist() == pytest.approx(wanted + [0.0] * (len(row) - len(wanted)), abs=1e-5)


def test_a_saved_head_is_gone_on_with_and_another_one_refused(folder: Path, tmp_path: Path) -> None:
    head = TrainedHead.load(folder, 2)
    spread(head)
    head.save(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    again = TrainedHead.load(tmp_path, 2)
    items = [(ids, (1,)) for ids in IDS]
    assert torch.equal(again.steps(items), head.steps(items))
    with pytest.raises(
        ModelFolderError, match=r"score\.weight is of shape \[2, 16\], and this PRM's"
    ):
        TrainedHead.load(tmp_path, 13)
    with pytest.raises(ModelFolderError, match="has no place for"):
        TrainedLM.load(tmp_path)
