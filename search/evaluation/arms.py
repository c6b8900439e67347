"""Arms: the strategies of an evaluation, each at one width, and which of them share their work."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol, Self, get_args

from pydantic import JsonValue

from search.run import Strategy
from search.selection import Selection, StepSelection
from search.types import Candidate

_SIZES = ("n", "width", "simulations")
# Best of n goes by the name of its selection, a search in steps by its own with these words added.
_SAMPLING: Mapping[str, str] = MappingProxyType({"prm": "best of n", "first": "pass@1"})
_CHOOSING: Mapping[str, str] = MappingProxyType(
    {
        "prm": "by score",
        "weighted": "by weighted vote",
        "majority": "by majority",
        "calibrated": "by calibrated vote",
    }
)


class ArmSettings(Strategy, Protocol):
    """A strategy's settings, as in the union of `search.strategies`."""

    is_steered_by_selection: ClassVar[bool]

    @property
    def needs_prm(self) -> bool: ...
    @property
    def uses_prm(self) -> bool: ...
    def model_dump(self, *, exclude_defaults: bool = False) -> dict[str, JsonValue]: ...
    def model_copy(self, *, update: Mapping[str, JsonValue]) -> Self: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One strategy at one width, which chooses by its `selection`."""

    strategy: ArmSettings

    def rank(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """All of these, the winner first."""
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
    def selection(self) -> str | None:
        """What chooses among candidates that do not hang on it; None where it steers, too."""
        selection = self.settings.get("selection")
        is_steered = self.strategy.is_steered_by_selection
        return None if selection is None or is_steered else str(selection)

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
        if self.selection is not None:
            changed.pop("selection", None)
            if self.type == "best_of_n":
                name = _SAMPLING.get(self.selection, self.selection)
            else:
                name = f"{name} {_CHOOSING[self.selection]}"
        settings = [
            f"{field.replace('_', ' ')} {value}"
            for field, value in changed.items()
            if field not in ("type", *_SIZES)
        ]
        return ", ".join([name, *settings])

    @property
    def label(self) -> str:
        """Name and sizes: `beam by score 16x4`."""
        size = f"{self.width}"
        if "width" in self.settings:
            size += f"x{self.settings['width']}"
        if "simulations" in self.settings:
            size += f", {self.settings['simulations']} simulations"
        return f"{self.name} {size}"

    def uses_prm(self, *, has_prm: bool) -> bool:
        """Whether step scores have a say in it."""
        return self.strategy.needs_prm or (has_prm and self.strategy.uses_prm)


def with_selections(arms: Iterable[Arm], selections: Sequence[Selection]) -> list[Arm]:
    """In the place of every arm that chooses among its candidates, one for each selection.

    Plain sampling stays what it is, and no search in steps has a "first". Each arm once.
    """
    found: list[Arm] = []
    for arm in arms:
        known: tuple[str, ...] = get_args(StepSelection if arm.type != "best_of_n" else Selection)
        names = [name for name in selections if name in known]
        if arm.selection in (None, "first"):
            asked = [arm]
        else:
            asked = [
                Arm(strategy=arm.strategy.model_copy(update={"selection": name})) for name in names
            ]
        found += [each for each in asked if each not in found]
    return found


def by_work(arms: Iterable[Arm]) -> list[list[Arm]]:
    """The arms in lists of those that write and score the very same candidates.

    Where `selection` only says which candidate wins, one search serves all. It is led by one that
    makes scores, and where one is to choose by fitted probabilities, those.
    """
    shared: dict[str, list[Arm]] = {}
    for arm in arms:
        settings = dict(arm.settings)
        if arm.selection is not None:
            del settings["selection"]
        alike = shared.setdefault(str(sorted(settings.items())), [])
        if arm not in alike:
            alike.append(arm)
    return [
        sorted(alike, key=lambda arm: (arm.selection != "calibrated", not arm.strategy.needs_prm))
        for alike in shared.values()
    ]
