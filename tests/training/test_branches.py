"""Prompts that are read once: the same log-probs and gradients as each response read alone."""

import random

import pytest
import torch
from torch import Tensor

from training.branches import Branches
from training.checkpoints import ModelSize, new_model, save_model
from training.data import Example
from training.models import TrainedLM
from training.rollout_batch import cut_by_tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedLM:
    size = ModelSize(hidden_size=32, num_hidden_layers=2, intermediate_size=48)
    folder = tmp_path_factory.mktemp("model")
    save_model(new_model(size, seed=1), folder)
    return TrainedLM.load(folder)


def ids(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(256) for _ in range(count))


def groups(*responses: list[int], seed: int = 0) -> list[Example]:
    """Examples of one prompt per list, with responses of these many tokens."""
    rng = random.Random(seed)
    found = []
    for lengths in responses:
        prompt = ids(rng, rng.randint(1, 12))
        found += [Example(ids=prompt + ids(rng, n), first=len(prompt)) for n in lengths]
    return found


def gradients(model: TrainedLM, batches: list[list[Example]], wanted: Tensor) -> list[Tensor]:
    """Of Σ wanted · log-prob over the rows of all batches."""
    model.model.zero_grad()
    row = 0
    for some in batches:
        found = model.logprobs(some)
        part = wanted[row : row + len(some), : found.shape[1]]
        torch.autograd.backward((found * part).sum())
        row += len(some)
    return [w.grad.clone() for w in model.parameters if w.grad is not None]


@pytest.mark.parametrize(
    "examples",
    [
        groups([5, 9, 1], [3, 3]),
        groups([1, 1], [7]),
        groups([4], [6], [2]),
        groups([8, 8, 8, 2]),
        [*groups([3, 4]), *groups([3, 4])],
    ],
    ids=["groups of any lengths", "one token, one alone", "all alone", "one group", "twice"],
)
def test_a_shared_prompt_changes_neither_log_probs_nor_gradients(
    model: TrainedLM, examples: list[Example]
) -> None:
    together = model.logprobs(examples)
    for row, example in enumerate(examples):
        alone = model.logprobs([example])[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)
        assert (together[row, len(alone) :] == 0).all()
    wanted = torch.randn(together.shape, generator=torch.Generator().manual_seed(2))
    at_once = gradients(model, [examples], wanted)
    one_by_one = gradients(model, [[example] for example in examples], wanted)
    for ours, theirs in zip(at_once, one_by_one, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_prompt_of_many_is_read_once() -> None:
    examples = groups([5, 9, 1], [3])
    first, last = examples[0].first, examples[3]
    plan = Branches(examples, torch.device("cpu"))
    # Of each response all but the last token; the one of the last group stands alone.
    assert len(plan.ids) == first + (4 + 8 + 0) + len(last.ids) - 1
    assert plan.targets.tolist() == [t for e in examples for t in e.ids[e.first :]]


def test_pieces_hold_groups_together_within_their_tokens() -> None:
    examples = groups([5, 9, 1], [30, 2], [3], [4, 4, 4], seed=3)
    rows = list(range(len(examples)))
    for most in (1, 20, 40, 1000):
        pieces = list(cut_by_tokens(examples, rows, most))
        assert sorted(row for piece in pieces for row in piece) == rows
        for piece in pieces:
            prompts = {examples[row].ids[: examples[row].first] for row in piece}
            read = sum(map(len, prompts))
            read += sum(len(examples[row].ids) - examples[row].first for row in piece)
            assert read <= most or len(piece) == 1
    assert len(list(cut_by_tokens(examples, rows, 1000))) == 1
    # The longest first: what does not fit is known at once.
    assert next(cut_by_tokens(examples, rows, 40))[0] == 3
