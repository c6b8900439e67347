"""An experiment of no time at all: coins, and what two of them add up to."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from training.experiments.base import Folders, Report, Result, Table, Unit

BENT = "bent"


class Coins:
    """See `Experiment`. A coin fails as long as its folder's parent holds a file `bent`."""

    name = "coins"
    title = "Coins"
    claim = "Two coins fall on heads."
    source = "nobody"
    setting = "Coins of seeds 0 and 1, and their sum."

    def rounds(self, quick: bool) -> Sequence[Sequence[Unit]]:
        """Two coins, then their sum."""
        return [[Unit("coin", 0), Unit("coin", 1)], [Unit("sum", 0)]]

    def run(self, unit: Unit, folders: Folders, *, quick: bool) -> Result:
        """The coin of an even seed falls on heads."""
        if unit.arm == "sum":
            return {"heads": sum(_heads(folders[Unit("coin", seed)]) for seed in (0, 1))}
        if unit.seed == 1 and (folders.base / BENT).exists():
            raise ValueError("the coin is bent")
        return {"heads": 1 - unit.seed % 2}

    def report(self, results: Mapping[Unit, Result], *, quick: bool) -> Report:
        """A row per unit."""
        rows = tuple((str(unit), str(result["heads"])) for unit, result in results.items())
        return Report(
            verdict="partly reproduced",
            sentence="One of two did.",
            tables=(Table("Coins", ("unit", "heads"), rows),),
            draw=_draw,
            notes="They were fair.",
        )


def _draw(figure: Figure) -> None:
    figure.subplots().plot([0, 1], [1, 0])


def _heads(folder: Path) -> int:
    heads: int = json.loads((folder / "result.json").read_text())["heads"]
    return heads
