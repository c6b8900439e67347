"""From what a job says of its data sets to the mixture that a run draws from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from prm.errors import InvalidInput
from training.datasets.difficulty import Filtered, by_level, by_pass_rate
from training.datasets.loading import DatasetSettings, Loaded, load_problems
from training.datasets.mixing import Mixture, Source


def _is_ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the first number is the least: write [{bounds[1]:g}, {bounds[0]:g}]")
    return bounds


Bounds = Annotated[tuple[float, float], AfterValidator(_is_ascending)]


class SourceSettings(DatasetSettings):
    """A data set in a mixture. `name` None is the file's.

    `levels` and `pass_rates` keep the problems whose column lies in these bounds, both included.
    """

    name: str | None = Field(default=None, min_length=1)
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    levels: Bounds | None = None
    pass_rates: Bounds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedMixture:
    """The mixture, and for each source what became of its rows: numbers for a run's events."""

    mixture: Mixture
    counts: dict[str, dict[str, int]]


def load_mixture(sources: Sequence[SourceSettings], seed: int) -> LoadedMixture:
    """Load, filter and mix. Raises InvalidInput that names the source, and what to change."""
    counts: dict[str, dict[str, int]] = {}
    mixed = []
    for settings in sources:
        name = settings.name or settings.path.name
        loaded = load_problems(settings)
        kept, told = _filtered(loaded, settings, name)
        counts[name] = {reason: len(places) for reason, places in loaded.dropped.items()} | told
        mixed.append(Source(name=name, problems=kept.problems, weight=settings.weight))
    return LoadedMixture(mixture=Mixture(mixed, seed), counts=counts)


def _filtered(
    loaded: Loaded, settings: SourceSettings, name: str
) -> tuple[Filtered, dict[str, int]]:
    kept = Filtered(problems=loaded.problems, below=0, above=0, unknown=0)
    told: dict[str, int] = {}
    rates = {id(p): r for p, r in zip(loaded.problems, loaded.pass_rates, strict=True)}
    try:
        if settings.levels is not None:
            kept = by_level(kept.problems, settings.levels)
            told |= _counts("level", kept)
        if settings.pass_rates is not None:
            known = [rates[id(problem)] for problem in kept.problems]
            kept = by_pass_rate(kept.problems, known, settings.pass_rates)
            told |= _counts("pass_rate", kept)
    except InvalidInput as error:
        raise InvalidInput(f"source {name!r}: {error}", param=error.param) from error
    return kept, {"kept": len(kept.problems)} | told


def _counts(what: str, kept: Filtered) -> dict[str, int]:
    return {
        f"{what}_below": kept.below,
        f"{what}_above": kept.above,
        f"{what}_unknown": kept.unknown,
    }
