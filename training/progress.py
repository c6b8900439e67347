"""How far a long run is: bars on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

# Called with how much is done, and a word on how it goes.
Advance = Callable[[int, str], None]

LOG_EVERY_S = 15.0
# What a step is told of in passing; of several names, the first that it has.
_TOLD = {
    "loss": ("policy_loss", "loss", "prm_loss"),
    "reward": ("reward",),
    "accuracy": ("accuracy",),
    "KL": ("reference_kl_k3", "policy_reference_kl", "policy_approx_kl_k3"),
}


@contextmanager
def stage(title: str, total: int, file: TextIO | None = None) -> Iterator[Advance]:
    """One stage of the run, of `total` units; yields what to call as they get done.

    `file` None is stdout.
    """
    file = file or sys.stdout
    started = time.monotonic()
    show = _bar if file.isatty() else _lines
    with show(title, total, file) as advance:
        yield advance
    say(f"{title}: done in {time.monotonic() - started:.0f} s", file)


def in_passing(told: Mapping[str, Any]) -> str:
    """A step's numbers in a few words.

    >>> in_passing({"prm_loss": 0.5012, "reward": 0.25, "tokens_per_s": 1234.5})
    'loss 0.501 reward 0.25 1,234 tokens/s'
    """
    words = []
    for word, names in _TOLD.items():
        found = next((told[name] for name in names if told.get(name) is not None), None)
        words += [] if found is None else [f"{word} {found:.3g}"]
    pace = told.get("tokens_per_s")
    return " ".join([*words, *([] if pace is None else [f"{pace:,.0f} tokens/s"])])


def say(text: str, file: TextIO | None = None) -> None:
    """One line for whoever watches."""
    print(text, flush=True, file=file)


def duration(seconds: float) -> str:
    """For a person.

    >>> duration(42), duration(250), duration(7500)
    ('42 s', '4 min', '2 h 05 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


@contextmanager
def _bar(title: str, total: int, file: TextIO) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(file=file), transient=True) as progress:
        task = progress.add_task(title, total=total, note="")
        yield lambda done, note: progress.update(task, completed=done, note=note)


@contextmanager
def _lines(title: str, total: int, file: TextIO) -> Iterator[Advance]:
    # Of the first call: a resumed run begins with some of it done.
    began: tuple[int, float] | None = None
    last = time.monotonic()

    def advance(done: int, note: str) -> None:
        nonlocal began, last
        now = time.monotonic()
        began = began or (done, now)
        if now - last >= LOG_EVERY_S:
            last = now
            say(" ".join(filter(None, [f"{title}: {done}/{total}", note, left(done, now)])), file)

    def left(done: int, now: float) -> str:
        assert began is not None
        fresh = done - began[0]
        if not fresh:
            return ""
        return f"({duration((now - began[1]) / fresh * (total - done))} left)"

    yield advance
