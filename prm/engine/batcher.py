"""Which reads go into the next forward: first come, first served, up to a token budget.

The budget is on rows times the longest: attention pads its rows, so one long read beside many short
ones would cost as much as many long ones.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from prm.families.base import Read


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRead:
    """A read, the request it belongs to, and its place among that request's outputs."""

    request: int
    index: int
    read: Read


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
        """The oldest read and those after it, for the same model and of a similar length, that fit.

        A read longer than the budget goes alone. All others keep their place.
        """
        if not self._waiting:
            return []
        model = self._waiting[0].read.model
        longest = len(self._waiting[0].read.ids)
        batch: list[QueuedRead] = []
        passed: list[QueuedRead] = []
        while self._waiting:
            entry = self._waiting.popleft()
            length = len(entry.read.ids)
            if entry.read.model != model or _is_unlike(length, longest):
                passed.append(entry)
                continue
            if batch and (len(batch) + 1) * max(longest, length) > self._token_budget:
                self._waiting.appendleft(entry)
                break
            batch.append(entry)
            longest = max(longest, length)
        self._waiting.extendleft(reversed(passed))
        return batch


def _is_unlike(length: int, longest: int) -> bool:
    """Whether padding these to one length would waste more than half of the work."""
    shorter, longer = sorted((length, longest))
    return longer > 64 and longer > 2 * shorter
