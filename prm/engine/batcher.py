"""Which reads go into the next forward: first come, first served, up to a token budget."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from prm.families.base import LogprobRead


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRead:
    """A read, the request it belongs to, and its place among that request's outputs."""

    request: int
    index: int
    read: LogprobRead


class ReadQueue:
    """Reads that wait for a forward. Not thread-safe."""

    def __init__(self, token_budget: int) -> None:
        self._token_budget = token_budget
        self._waiting: deque[QueuedRead] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def extend(self, reads: Iterable[QueuedRead]) -> None:
        """Queue reads behind all others."""
        self._waiting.extend(reads)

    def drop(self, request: int) -> None:
        """Forget a request's reads: its caller has gone."""
        self._waiting = deque(entry for entry in self._waiting if entry.request != request)

    def next_batch(self) -> list[QueuedRead]:
        """The oldest read and the following ones for the same model that fit the token budget.

        A read longer than the budget goes alone. Reads for other models keep their place.
        """
        if not self._waiting:
            return []
        model = self._waiting[0].read.model
        batch: list[QueuedRead] = []
        passed: list[QueuedRead] = []
        tokens = 0
        while self._waiting:
            entry = self._waiting.popleft()
            if entry.read.model != model:
                passed.append(entry)
                continue
            if batch and tokens + len(entry.read.ids) > self._token_budget:
                self._waiting.appendleft(entry)
                break
            batch.append(entry)
            tokens += len(entry.read.ids)
        self._waiting.extendleft(reversed(passed))
        return batch
