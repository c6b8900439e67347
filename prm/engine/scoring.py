"""The read requests that an engine process has taken in, from arrival to reply."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prm.engine.batcher import ReadQueue
from prm.engine.messages import ErrorReply, ReadReply, ReadRequest
from prm.engine.reader import Reader
from prm.engine.reads import OpenRead

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Pending:
    """A request with some of its reads unfinished."""

    reads: list[OpenRead]
    arrived_s: float = field(default_factory=time.perf_counter)
    queue_ms: float | None = None
    inference_ms: float = 0.0


class ReadRequests:
    """Open read requests over the models of one device. Not thread-safe.

    `take` and `cancel` as messages arrive; `step` runs one forward per model that has something to
    do. Both give the replies that are due.
    """

    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self._readers: Mapping[str, Reader] = {}
        self._queues: dict[str, ReadQueue] = {}
        self._pending: dict[int, _Pending] = {}
        self.serve(readers)

    def serve(self, readers: Mapping[str, Reader]) -> None:
        """Read on these from now on; what waits for one that stays goes on waiting."""
        self._queues = {
            name: self._queues[name] if self._readers.get(name) is reader else ReadQueue(reader)
            for name, reader in readers.items()
        }
        self._readers = dict(readers)

    @property
    def busy(self) -> bool:
        """Whether any read waits for a forward."""
        return any(self._queues.values())

    def take(self, request: ReadRequest) -> Iterator[ReadReply | ErrorReply]:
        """Queue a request's reads; what is known already is answered at once."""
        try:
            reads = [self._readers[read.model].open(read) for read in request.reads]
        except IndexError as error:
            yield ErrorReply(id=request.id, message=str(error))
            return
        except KeyError as error:
            yield ErrorReply(id=request.id, message=f"no model {error} is loaded")
            return
        self._pending[request.id] = _Pending(reads=reads)
        for name, queue in self._queues.items():
            queue.extend(request.id, [read for read in reads if read.read.model == name])
        yield from self._replies([request.id])

    def cancel(self, number: int) -> None:
        """Forget a request: nobody waits for it."""
        self._pending.pop(number, None)
        for queue in self._queues.values():
            queue.drop(number)

    def step(self) -> Iterator[ReadReply | ErrorReply]:
        """One forward of every model that somebody waits for."""
        for queue in self._queues.values():
            if queue:
                yield from self._forward(queue)

    def _forward(
        self, queue: ReadQueue, *, only: int | None = None
    ) -> Iterator[ReadReply | ErrorReply]:
        started = time.perf_counter()
        batch, numbers = queue.next_batch(only=only)
        try:
            batch.run()
        except RuntimeError as error:
            yield from self._retry(queue, numbers, error)
            return
        queue.forget_finished(numbers)
        took_ms = 1e3 * (time.perf_counter() - started)
        for number in numbers:
            pending = self._pending[number]
            pending.inference_ms += took_ms
            if pending.queue_ms is None:
                pending.queue_ms = 1e3 * (started - pending.arrived_s)
        yield from self._replies(numbers)

    def _retry(
        self, queue: ReadQueue, numbers: Sequence[int], error: RuntimeError
    ) -> Iterator[ErrorReply | ReadReply]:
        """Out of memory, most likely: each request by itself, and tell the one that still fails."""
        if len(numbers) > 1:
            for number in numbers:
                yield from self._forward(queue, only=number)
            return
        (number,) = numbers
        logger.error("a scoring batch failed: %s", error)
        self.cancel(number)
        message = f"the model could not compute it ({type(error).__name__})"
        yield ErrorReply(id=number, message=message)

    def _replies(self, numbers: Sequence[int]) -> Iterator[ReadReply | ErrorReply]:
        for number in numbers:
            pending = self._pending[number]
            bad = next((i for i, read in enumerate(pending.reads) if read.error), None)
            if bad is not None:
                self.cancel(number)
                yield ErrorReply(id=number, message=str(pending.reads[bad].error), read=bad)
            elif all(read.is_finished for read in pending.reads):
                del self._pending[number]
                yield ReadReply(
                    id=number,
                    outputs=tuple(read.output for read in pending.reads if read.output),
                    queue_ms=pending.queue_ms or 0.0,
                    inference_ms=pending.inference_ms,
                )
