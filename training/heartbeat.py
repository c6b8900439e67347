"""A sign that a run still does something: the age of a file.

It is touched where work was done, and by no thread of its own: that would beat beside a run that
hangs.
"""

import time
from pathlib import Path

# Nobody looks more closely.
_EVERY_S = 1.0


class Heartbeat:
    """Touches `path` when it is made, and at most once a second from then on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = -_EVERY_S
        self.beat()

    def beat(self) -> None:
        """Something was done."""
        now = time.monotonic()
        if now - self._last >= _EVERY_S:
            self._last = now
            self._path.touch()
