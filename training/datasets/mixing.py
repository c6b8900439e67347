"""Several sources in one order: by weights, seeded, and to be taken up again at any place.

The order is a function of the sources, the seed and the place alone, so that a position is one
number. Each source is gone through in passes, in another order every time; which source a place
belongs to is the one that lags most behind its weight, so that after any number of places each has
its share to within the number of sources.
"""

import hashlib
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from prm.errors import InvalidInput
from training.types import Problem

_FINGERPRINT_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Problems under a name. `weight`: of the sum of all weights, this share of places is its."""

    name: str
    problems: Sequence[Problem]
    weight: float = 1.0


class MixPosition(BaseModel):
    """A place in a mixture, to be saved: the next problem is number `place`, counted from 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    place: int = Field(ge=0)
    seed: int
    fingerprints: dict[str, str]


class Mixture:
    """An endless order of the problems of some sources. Not for several threads at once.

    Raises InvalidInput for no source, an empty one, two of one name, or a weight that is not
    above 0.
    """

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        _check(sources)
        self._sources = tuple(sources)
        self._seed = seed
        total = sum(source.weight for source in sources)
        self._shares = [source.weight / total for source in sources]
        self._taken = [0] * len(sources)
        # Of each place: its source, and how many that source had given before.
        self._source_at = array("H")
        self._count_at = array("L")
        self._orders: dict[tuple[int, int], list[int]] = {}

    def at(self, place: int) -> Problem:
        """The problem at this place."""
        while len(self._source_at) <= place:
            self._extend()
        index, count = self._source_at[place], self._count_at[place]
        problems = self._sources[index].problems
        epoch, within = divmod(count, len(problems))
        return problems[self._order(index, epoch)[within]]

    def take(self, first: int, count: int) -> list[Problem]:
        """`count` problems from this place on."""
        return [self.at(place) for place in range(first, first + count)]

    def position(self, place: int) -> MixPosition:
        """What to save so that `resume` goes on with this place."""
        return MixPosition(place=place, seed=self._seed, fingerprints=self._fingerprints())

    def resume(self, position: MixPosition) -> int:
        """The place to go on with. Raises InvalidInput where the order is now another one."""
        if position.seed != self._seed:
            raise InvalidInput(
                f"the position is of seed {position.seed}, and this mixture has {self._seed}; "
                "resume with the seed that the run began with",
                param="seed",
            )
        now = self._fingerprints()
        names = sorted(position.fingerprints.keys() | now.keys())
        changed = [name for name in names if position.fingerprints.get(name) != now.get(name)]
        if changed:
            raise InvalidInput(
                f"{', '.join(changed)}: other problems, or another weight, than when the position "
                "was saved; resume with the same data, or begin a new run",
                param="data",
            )
        return position.place

    def _extend(self) -> None:
        drawn = len(self._source_at) + 1
        lags = [
            share * drawn - taken for share, taken in zip(self._shares, self._taken, strict=True)
        ]
        index = max(range(len(lags)), key=lambda i: (lags[i], -i))
        self._source_at.append(index)
        self._count_at.append(self._taken[index])
        self._taken[index] += 1

    def _order(self, index: int, epoch: int) -> list[int]:
        if (index, epoch) not in self._orders:
            # Of each source the pass before is still wanted at the border of two batches.
            self._orders = {
                key: order
                for key, order in self._orders.items()
                if key[0] != index or key[1] >= epoch - 1
            }
            source = self._sources[index]
            rng = random.Random(f"{self._seed}/{source.name}/{epoch}")
            size = len(source.problems)
            self._orders[index, epoch] = rng.sample(range(size), size)
        return self._orders[index, epoch]

    def _fingerprints(self) -> dict[str, str]:
        return {
            source.name: _fingerprint(source, share)
            for source, share in zip(self._sources, self._shares, strict=True)
        }


def _fingerprint(source: Source, share: float) -> str:
    digest = hashlib.sha256(f"{share!r}".encode())
    for problem in source.problems:
        digest.update(repr(problem).encode())
    return digest.hexdigest()[:_FINGERPRINT_DIGITS]


def _check(sources: Sequence[Source]) -> None:
    if not sources:
        raise InvalidInput("a mixture needs a source; give one at least", param="data")
    names = [source.name for source in sources]
    for source in sources:
        if names.count(source.name) > 1:
            raise InvalidInput(
                f"two sources have the name {source.name!r}; give each its own", param="data"
            )
        if not source.problems:
            raise InvalidInput(
                f"source {source.name!r} holds no problem; leave it out, or widen its filter",
                param="data",
            )
        if not 0 < source.weight < float("inf"):
            raise InvalidInput(
                f"source {source.name!r} has weight {source.weight:g}; give a number above 0, or "
                "leave the source out",
                param="weight",
            )
