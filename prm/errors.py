"""Every error that Rung raises on purpose.

RungError
├── CallerError               a caller's mistake; the message names field, number and remedy
│   ├── InvalidInput          400  the values do not make sense together, or for this model
│   ├── UnknownModel          404  no such model or version is served
│   ├── NotFound              404  nothing else has this id: no file, job, event, served answer
│   └── Conflict              409  what is there does not allow it
├── Overloaded                429  every permit is taken; says when to come back
├── Unavailable               503  no engine, or no policy server, can answer at this moment
│   ├── EngineDied            503  the engine process died under this request
│   └── NoRoom                503  memory cannot hold one more version beside those that serve
├── ModelFault                500  a model computed what is no score; names it and the item
└── ModelFolderError               a model folder is refused; names the file and the reason

A broken invariant is an `assert`. Everything else is a bug and goes up.
"""

import math
from pathlib import Path


class RungError(Exception):
    """Base of the tree above. `str(error)` is written for the person who can act on it."""


class CallerError(RungError):
    """A caller's mistake. `param` names the field, as in `items[3].steps`."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidInput(CallerError):
    """The request is well formed and still cannot be served."""


class UnknownModel(CallerError):
    """The name, or the version behind its `@`, is not served here."""


class NotFound(CallerError):
    """Nothing here has this id."""


class Conflict(CallerError):
    """Well asked, and not possible with what is there: a rejected version, a job that is over."""


class Overloaded(RungError):
    """All permits are taken. `retry_after_s` is how long the caller should wait."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(RungError):
    """Something this request needs is not running now; the same request may work later."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineDied(Unavailable):
    """The engine process went away while this request was in it."""


class NoRoom(Unavailable):
    """A version would not fit beside what is loaded; says how much memory it wants."""

    def __init__(self, needed_bytes: int, free_bytes: int) -> None:
        needed, free = (math.ceil(size / (1 << 20)) for size in (needed_bytes, free_bytes))
        super().__init__(f"it needs {needed} MiB beside those that serve, and {free} are free")
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class ModelFault(RungError):
    """A model computed a value that is no finite number. `read` is the place of the read, if known.

    Trying again will not help: its weights are unusable here, in this precision.
    """

    def __init__(self, message: str, *, read: int | None = None) -> None:
        super().__init__(message)
        self.read = read


class ModelFolderError(RungError):
    """A model folder that must not be served: which file, and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
