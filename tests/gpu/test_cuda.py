"""The same code path on a CUDA device, against the CPU."""

from pathlib import Path

import pytest
import torch

from prm.chat import ChatTokenizer
from prm.engine.model import CausalLM
from prm.engine.reader import Reader
from prm.engine.sampler import Sampler, SamplingParams
from prm.families.base import HeadRead, LogprobRead
from tests.factories import POLICY

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

IDS = [list(range(10, 60)), [3, 5], list(range(200, 230))]
PROMPT = (257, 49, 43, 49, 256, 258)


@pytest.fixture(scope="module")
def folder(tiny_models: Path) -> Path:
    return tiny_models / POLICY / "1"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_logprobs_on_cuda_are_those_of_the_cpu(
    folder: Path, dtype: torch.dtype, tolerance: float
) -> None:
    here = CausalLM.load(folder).logprobs(IDS, [1, 1, 1])
    there = CausalLM.load(folder, device="cuda", dtype=dtype).logprobs(IDS, [1, 1, 1])
    for ours, theirs in zip(there, here, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=tolerance, rtol=0)


def test_samples_on_cuda_do_not_depend_on_their_neighbours(folder: Path) -> None:
    sampler = Sampler(CausalLM.load(folder, device="cuda"), ChatTokenizer(folder), max_batch=4)
    params = SamplingParams(max_tokens=30)
    crowd = sampler.generate([PROMPT] * 11, params, list(range(11)))
    assert crowd == [sampler.generate([PROMPT], params, [seed])[0] for seed in range(11)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_branches_and_rounds_on_cuda_are_those_of_the_cpu(
    folder: Path, dtype: torch.dtype, tolerance: float
) -> None:
    # bfloat16 takes the variable-length kernel, float32 the padded one.
    trunk = tuple(range(10, 60))
    rounds = [
        [(*trunk, 100 + k) for k in range(5)],
        [(*trunk, 100 + k, *range(150, 150 + 7 * k), 3) for k in range(5)],
    ]
    here = Reader(CausalLM.load(folder))
    there = Reader(CausalLM.load(folder, device="cuda", dtype=dtype))
    for round_ in rounds:
        reads = [LogprobRead(model="m", ids=ids, first=1) for ids in round_]
        for ours, theirs in zip(there.read(reads), here.read(reads), strict=True):
            assert ours.values == pytest.approx(theirs.values, abs=tolerance)
            assert ours.cached_tokens == theirs.cached_tokens


def test_labels_on_cuda_are_those_of_the_cpu(folder: Path) -> None:
    read = HeadRead(model="m", ids=tuple(range(10, 60)), positions=(3, 49), labels=(7, 8), width=2)
    here = Reader(CausalLM.load(folder)).read([read])[0]
    there = Reader(CausalLM.load(folder, device="cuda")).read([read])[0]
    assert there.values == pytest.approx(here.values, abs=1e-4)
