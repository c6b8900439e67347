"""Whose reads go into the next forward: every request that waits gets a share of it.

A request that asks for little is served by the next forward however much others ask for, and what
is left of the token budget goes to the others in the order in which they came.
"""

from collections.abc import Sequence

from prm.engine.reader import Batch, Reader
from prm.engine.reads import OpenRead

# A share below this would cut reads into pieces too small to be worth a row of attention.
LEAST_SHARE = 256


class ReadQueue:
    """Reads of one model that wait for a forward, by request. Not thread-safe."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._requests: dict[int, list[OpenRead]] = {}

    def __bool__(self) -> bool:
        return bool(self._requests)

    def extend(self, request: int, reads: Sequence[OpenRead]) -> None:
        """Queue unfinished reads of a request."""
        waiting = [read for read in reads if not read.is_finished]
        if waiting:
            self._requests.setdefault(request, []).extend(waiting)

    def drop(self, request: int) -> None:
        """Forget a request: its caller has gone, or it failed."""
        for read in self._requests.pop(request, ()):
            self._reader.close(read)

    def next_batch(self, *, only: int | None = None) -> tuple[Batch, list[int]]:
        """A batch with a share of every waiting request (or of one), and their numbers."""
        batch = self._reader.batch()
        requests = list(self._requests) if only is None else [only]
        share = max(LEAST_SHARE, self._reader.token_budget // max(1, len(requests)))
        joined = [number for number in requests if self._add(batch, number, share)]
        for number in joined:
            self._add(batch, number, batch.budget_left)
        return batch, joined

    def forget_finished(self, requests: Sequence[int]) -> None:
        """After a batch: keep what these requests still wait for, behind those not served."""
        for number in requests:
            waiting = [read for read in self._requests.pop(number, ()) if not read.is_finished]
            if waiting:
                self._requests[number] = waiting

    def _add(self, batch: Batch, request: int, tokens: int) -> bool:
        """Add a request's reads up to so many tokens; whether any joined."""
        is_joined = False
        for read in self._requests[request]:
            if tokens <= 0:
                break
            added = batch.add(read, at_most=tokens)
            if added is not None:
                is_joined = True
                tokens -= added
        return is_joined
