"""A circuit breaker: a server that keeps failing is left alone for a while, and its callers told.

    closed ── `after` failures in a row ──▶ open ── `cooldown_s` ──▶ half-open: one request goes on
      ▲                                      ▲                           │
      └────────────── it answered ───────────┼───────────────────────────┤
                                             └──────── it failed ────────┘

Without it each search would wait for time-outs of its own, and a server that comes back would find
all of them at its door at once.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from prm.errors import RungError, Unavailable


class BreakerState(StrEnum):
    """What the next request meets."""

    CLOSED = "closed"  # goes through
    OPEN = "open"  # is refused at once
    HALF_OPEN = "half_open"  # is the one that finds out


class Breaker:
    """The breaker of one server. Not thread-safe; many requests of one event loop may share it.

    >>> with breaker.guard("the policy server") as answered:
    ...     response = await ask()  # Unavailable counts as a failure, a refusal as an answer
    ...     answered()
    """

    def __init__(
        self,
        *,
        after: int = 5,
        cooldown_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert after >= 1
        self.failures = 0  # all of them, for metrics
        self._after = after
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._in_a_row = 0
        self._opened_s = 0.0
        self._is_probing = False
        self._last = ""

    @property
    def state(self) -> BreakerState:
        """What the next request meets."""
        if self._in_a_row < self._after:
            return BreakerState.CLOSED
        if self._is_probing or self._clock() - self._opened_s < self._cooldown_s:
            return BreakerState.OPEN
        return BreakerState.HALF_OPEN

    @property
    def is_suspect(self) -> bool:
        """Whether the last that was heard of the server is a failure."""
        return self._in_a_row > 0

    @contextmanager
    def guard(self, server: str) -> Iterator[Callable[[], None]]:
        """One request, from its sending to the end of its answer.

        Call what it gives as soon as a good answer begins. Raises Unavailable at once while open.
        """
        state = self.state
        if state is BreakerState.OPEN:
            left_s = max(0.0, self._opened_s + self._cooldown_s - self._clock())
            raise Unavailable(
                f"{server} is not asked for another {left_s:.1f} s: {self._in_a_row} requests in a "
                f"row failed, the latest so: {self._last}",
                retry_after_s=max(1.0, left_s),
            )
        is_probe = state is BreakerState.HALF_OPEN
        self._is_probing = self._is_probing or is_probe
        has_answered = False

        def answered() -> None:
            nonlocal has_answered
            has_answered = True
            if is_probe:
                # Others go on now; should the answer break off, that one failure opens again.
                self._is_probing = False
                self._in_a_row = self._after - 1

        try:
            yield answered
        except Unavailable as error:
            self._failed(str(error))
            raise
        except RungError:
            self._in_a_row = 0  # It refused: so it is there.
            raise
        else:
            self._in_a_row = 0
        finally:
            # Without an answer and without a failure, when the caller has gone: nothing was learnt.
            if is_probe and not has_answered:
                self._is_probing = False

    def _failed(self, reason: str) -> None:
        self.failures += 1
        self._in_a_row += 1
        self._last = reason
        if self._in_a_row >= self._after:
            self._opened_s = self._clock()
