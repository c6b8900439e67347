"""What an experiment is: runs that can be done one by one, and a report on all of them.

A paper's headline claim, scaled down to what two cores do in half an hour. Everything that trains
goes through the loop that users have (`training/run.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a unit found: anything that JSON holds.
Result = dict[str, Any]
Verdict = Literal["reproduced", "partly reproduced", "not reproduced"]


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """One run of an experiment, in a process of its own: an arm, and the seed of what it draws."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}.{self.seed}"


@dataclass(frozen=True, slots=True)
class Folders:
    """Where units keep their files; those of earlier rounds are there to be read."""

    base: Path

    def __getitem__(self, unit: Unit) -> Path:
        return self.base / "units" / str(unit)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a report."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came out. `sentence` says whether the claim reproduced; `draw` fills the picture."""

    verdict: Verdict
    sentence: str
    tables: tuple[Table, ...]
    draw: Callable[["Figure"], None]
    notes: str = ""


class Experiment(Protocol):
    """One paper's claim. `rounds`, `run` and `report` are called in different processes."""

    @property
    def name(self) -> str:
        """As in `EXPERIMENTS`."""

    @property
    def title(self) -> str:
        """The page's heading."""

    @property
    def claim(self) -> str:
        """What the paper says, in a sentence or two."""

    @property
    def source(self) -> str:
        """The paper, and where in it."""

    @property
    def setting(self) -> str:
        """What is run here, as Markdown: task, models, arms, and how settings were chosen."""

    def rounds(self, quick: bool) -> Sequence[Sequence[Unit]]:
        """The units. A round begins when those before it are done; its own run side by side."""

    def run(self, unit: Unit, folders: Folders, *, quick: bool) -> Result:
        """Do one unit. Its folder is there, and empty but for what an earlier try left."""

    def report(self, results: Mapping[Unit, Result], *, quick: bool) -> Report:
        """All units' results, as something to read."""
