"""What a turn tells of itself: seconds, tokens, peak memory, and a check on the numbers."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.memory import watch_peak
from benchmarks.scoring.child import Task
from benchmarks.scoring.shapes import Shape
from benchmarks.scoring.workloads import QUICK, WORKLOADS, Batch, Sizes

# The wanted log-probs of every item of a batch.
ScoreBatch = Callable[[Batch], Sequence[Sequence[float]]]


def batches_of(shape: Shape, task: Task) -> list[Batch]:
    """The items of a turn, by the batches in which they come."""
    return WORKLOADS[task.workload](shape, QUICK if task.is_quick else Sizes(), task.round)


def measured(batches: Sequence[Batch], score: ScoreBatch, *, base_bytes: int) -> dict[str, Any]:
    """Score all batches, one after the other.

    `base_bytes` is what the process held before its first turn, the model included: the peak is
    told as growth over it. `mean_logprob` shows that all contestants found the same.
    """
    seconds = []
    total = 0.0
    count = 0
    with watch_peak() as peak:
        for batch in batches:
            started = time.perf_counter()
            found = score(batch)
            seconds.append(time.perf_counter() - started)
            assert [len(values) for values in found] == [len(i.ids) - i.first for i in batch]
            total += sum(map(sum, found))
            count += sum(map(len, found))
    return {
        "seconds": sum(seconds),
        "batch_seconds": seconds,
        "tokens": sum(len(item.ids) for batch in batches for item in batch),
        "mean_logprob": total / count,
        "peak_bytes": peak() - base_bytes,
    }
