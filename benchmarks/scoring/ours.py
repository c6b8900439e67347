"""Our side: a Reader as the engine process has it; and the matrix products of this machine."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.memory import resident_bytes
from benchmarks.scoring.child import Spec, TakeTurn, Task
from benchmarks.scoring.measure import batches_of, measured
from benchmarks.scoring.shapes import Shape
from benchmarks.scoring.workloads import Batch
from prm.engine.model import CausalLM
from prm.engine.reader import TOKEN_BUDGETS, Reader
from prm.families.base import LogprobRead

# Tokens of one product with the head: a full budget of its logits would be 5 GB for Qwen's
# vocabulary, which nobody's scoring should make.
HEAD_ROWS = 1024
BODY_ROWS = TOKEN_BUDGETS["cpu"]
SQUARE = 4096
MATMUL_SECONDS = 3.0


def load(spec: Spec) -> TakeTurn:
    """`rung` or `matmul`."""
    torch.set_num_threads(spec.threads)
    return _rung(spec) if spec.kind == "rung" else _matmul(spec)


def _rung(spec: Spec) -> TakeTurn:
    """A new Reader for every turn: what is cached was computed within the turn."""
    folder = Path(spec.folder)
    model = CausalLM.load(folder, dtype=getattr(torch, spec.dtype))
    model.fuse()  # as the engine process does
    shape = Shape.of(folder)
    model.logprobs(
        [range(8)], [1]
    )  # weights that are mapped from the file count once they are read
    base_bytes = resident_bytes()

    def take_turn(task: Task) -> Mapping[str, Any]:
        reader = Reader(model)

        def score(batch: Batch) -> Sequence[Sequence[float]]:
            reads = [LogprobRead(model="m", ids=item.ids, first=item.first) for item in batch]
            return [output.values for output in reader.read(reads)]

        batches = batches_of(shape, task)
        result = measured(batches, score, base_bytes=base_bytes)
        if task.workload == "flat":
            lengths = (len(item.ids) for batch in batches for item in batch)
            result["flops_per_s"] = shape.scoring_flops(lengths) / result["seconds"]
        return result

    return take_turn


def _matmul(spec: Spec) -> TakeTurn:
    """Operations per second of the model's own matrix products, and of a large square one."""
    shape = Shape.of(Path(spec.folder))
    dtype = getattr(torch, spec.dtype)

    def take_turn(task: Task) -> Mapping[str, Any]:
        seconds = 0.0 if task.is_quick else MATMUL_SECONDS
        side = SQUARE // 16 if task.is_quick else SQUARE
        body = [(BODY_ROWS, *matrix) for matrix in shape.matrices]
        # The head by as many products as make a budget's worth of tokens.
        head = (HEAD_ROWS, shape.hidden_size, shape.vocab_size, BODY_ROWS // HEAD_ROWS)
        products = [*body, head]
        flops = sum(2.0 * rows * inputs * outputs * n for rows, inputs, outputs, n in products)
        took = sum(
            n * _seconds_of_product(rows, inputs, outputs, dtype, seconds / len(products))
            for rows, inputs, outputs, n in products
        )
        square = 2.0 * side**3 / _seconds_of_product(side, side, side, dtype, seconds)
        return {"flops_per_s": flops / took, "square_flops_per_s": square}

    return take_turn


@torch.inference_mode()
def _seconds_of_product(
    rows: int, inputs: int, outputs: int, dtype: torch.dtype, seconds: float
) -> float:
    """The shortest of as many tries as fit into `seconds`, at least two: this is a bound.

    Either library's: torch multiplies float32 by MKL, and by oneDNN when asked for it by name.
    """
    tokens = torch.randn(rows, inputs).to(dtype)
    weights = torch.randn(outputs, inputs).to(dtype)
    best = float("inf")
    begun = time.perf_counter()
    tries = 0
    while tries < 2 or time.perf_counter() - begun < seconds:
        for multiply in (F.linear, _onednn_linear):
            started = time.perf_counter()
            multiply(tokens, weights)
            best = min(best, time.perf_counter() - started)
        tries += 1
    return best


def _onednn_linear(tokens: Tensor, weights: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, weights, None, "none", [], "")
    return product
