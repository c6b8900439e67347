"""The packed forward against transformers' own, and against itself in other batches."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from prm.engine.logprobs import target_logprobs
from prm.engine.model import CausalLM
from prm.errors import ModelFolderError
from tests.factories import POLICY

sequences = st.lists(st.lists(st.integers(0, 255), min_size=2, max_size=40), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def folder(tiny_models: Path) -> Path:
    return tiny_models / POLICY / "1"


@pytest.fixture(scope="module")
def model(folder: Path) -> CausalLM:
    return CausalLM.load(folder)


def test_logprobs_equal_a_plain_log_softmax(model: CausalLM, folder: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = [list(range(10, 60)), [3, 5], list(range(200, 230))]
    first = [5, 1, 30]
    found = model.logprobs(ids, first)
    for sequence, start, ours in zip(ids, first, found, strict=True):
        with torch.inference_mode():
            table = reference(torch.tensor([sequence])).logits[0].log_softmax(-1)
        theirs = [table[t - 1, sequence[t]].item() for t in range(start, len(sequence))]
        assert ours.tolist() == pytest.approx(theirs, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(sequences)
def test_a_sequence_reads_the_same_alone_and_in_any_batch(
    model: CausalLM, ids: list[list[int]]
) -> None:
    together = model.logprobs(ids, [1] * len(ids))
    for sequence, ours in zip(ids, together, strict=True):
        (alone,) = model.logprobs([sequence], [1])
        torch.testing.assert_close(ours, alone, atol=1e-5, rtol=0)


def test_chunks_do_not_change_logprobs() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 8, generator=generator)
    head = torch.randn(30, 8, generator=generator)
    targets = torch.randint(30, (50,), generator=generator)
    whole = torch.log_softmax(hidden.double() @ head.double().T, -1)
    expected = whole.gather(1, targets[:, None]).squeeze(1)
    for tile in ((1, 1), (3, 7), (5, 100), None):
        found = target_logprobs(hidden, head, targets, tile=tile)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_bfloat16_weights_still_give_float32_logprobs(folder: Path) -> None:
    model = CausalLM.load(folder, dtype=torch.bfloat16)
    (found,) = model.logprobs([[1, 2, 3, 4]], [1])
    assert found.dtype == torch.float32


def test_a_setting_that_the_engine_does_not_apply_is_refused(folder: Path, tmp_path: Path) -> None:
    text = (folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        text.replace('"hidden_act"', '"final_logit_softcapping": 30.0, "hidden_act"')
    )
    with pytest.raises(ModelFolderError, match="final_logit_softcapping"):
        CausalLM.load(tmp_path)
