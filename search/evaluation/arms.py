"""Arms: the strategies of an evaluation, each at one width, and which of them share their work."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pydantic import JsonValue

from search.run import Strategy
from search.strategies.selecting import rank_by
from search.types import Candidate

_SIZES = ("n", "width", "simulations")


class ArmSettings(Strategy, Protocol):
    """A strategy's settings, as in the union of `search.strategies`."""

    @property
    def needs_prm(self) -> bool: ...
    def model_dump(self, *, exclude_defaults: bool = False) -> dict[str, JsonValue]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One strategy at one width. `by_vote`: not its own winner, but a weighted vote's.

    The vote is among the candidates that the search ended with, each with the weight of its score,
    as search-and-learn chooses among the beams of a search (Beeching et al., 2024).
    """

    strategy: ArmSettings
    by_vote: bool = False

    def rank(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """All of these, the winner first."""
        if self.by_vote:
            return rank_by("weighted", candidates)
        return self.strategy.rank(candidates)

    @property
    def settings(self) -> Mapping[str, JsonValue]:
        """What a request's `strategy` holds."""
        return self.strategy.model_dump()

    @property
    def type(self) -> str:
        """The strategy's name."""
        return str(self.settings["type"])

    @property
    def width(self) -> int:
        """Candidates, beams or particles at a time."""
        n = self.settings.get("n", 1)
        assert isinstance(n, int)
        return n

    @property
    def name(self) -> str:
        """Strategy and what it was set to, sizes apart: what a line in a picture stands for."""
        changed = self.strategy.model_dump(exclude_defaults=True)
        name = self.type.replace("_", " ")
        if self.type == "best_of_n" and (selection := changed.pop("selection", None)):
            name = {"first": "pass@1"}.get(str(selection), str(selection))
        settings = [
            f"{field.replace('_', ' ')} {value}"
            for field, value in changed.items()
            if field not in ("type", *_SIZES)
        ]
        return ", ".join([name + (" by vote" if self.by_vote else ""), *settings])

    @property
    def label(self) -> str:
        """Name and sizes: `beam 16x4`."""
        size = f"{self.width}"
        if "width" in self.settings:
            size += f"x{self.settings['width']}"
        if "simulations" in self.settings:
            size += f", {self.settings['simulations']} simulations"
        return f"{self.name} {size}"

    def uses_prm(self, *, has_prm: bool) -> bool:
        """Whether step scores have a say in it."""
        is_vote = self.type == "best_of_n" or self.settings.get("selection") is not None
        return self.strategy.needs_prm or (has_prm and not is_vote)


def with_votes(arms: Iterable[Arm]) -> list[Arm]:
    """The arms, and after each that searches in rounds the same one by vote."""
    found = []
    for arm in arms:
        found.append(arm)
        if arm.strategy.needs_prm and arm.type != "best_of_n" and not arm.by_vote:
            found.append(replace(arm, by_vote=True))
    return found


def by_work(arms: Iterable[Arm]) -> list[list[Arm]]:
    """The arms in lists of those that write and score the very same candidates.

    Selections of best_of_n differ only in which candidate they take: one search serves them all,
    led by one that needs the PRM where there is one. So does a strategy, and a vote in its place.
    """
    shared: dict[str, list[Arm]] = {}
    for arm in arms:
        settings = dict(arm.settings)
        if arm.type == "best_of_n":
            del settings["selection"]
        alike = shared.setdefault(str(sorted(settings.items())), [])
        if arm not in alike:
            alike.append(arm)
    return [
        sorted(alike, key=lambda arm: (arm.by_vote, not arm.strategy.needs_prm))
        for alike in shared.values()
    ]
