"""The PRM versions that requests may name, and the scorer of each."""

from collections.abc import Mapping

from prm.errors import UnknownModel
from prm.registry import Registry
from prm.scorer import StepScorer


class Scorers:
    """Scorers by the names in requests: `name`, which is its live version, or `name@version`."""

    def __init__(self, registry: Registry, by_key: Mapping[str, StepScorer]) -> None:
        self.registry = registry
        self._by_key = by_key

    def get(self, key: str, *, param: str) -> StepScorer:
        """The scorer of a name. Raises UnknownModel about the field `param`."""
        version = self.registry.get(key)
        if version is None or version.key not in self._by_key:
            known = ", ".join(sorted(s.manifest.name for s in self._by_key.values())) or "none"
            raise UnknownModel(
                f"no PRM named {key!r} is served here; there is {known}", param=param
            )
        return self._by_key[version.key]
