"""The table of PRM families: one file and one line each."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from prm.families import implicit, math_shepherd, rlhflow
from prm.families.base import FamilySpec

FAMILIES: Mapping[str, FamilySpec[Any]] = MappingProxyType(
    {spec.name: spec for spec in (implicit.SPEC, math_shepherd.SPEC, rlhflow.SPEC)}
)
