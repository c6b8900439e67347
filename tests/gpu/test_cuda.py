"""The same code path on a CUDA device, against the CPU."""

from pathlib import Path

import pytest
import torch

from prm.chat import ChatTokenizer
from prm.engine.model import CausalLM
from prm.engine.sampler import Sampler, SamplingParams
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
