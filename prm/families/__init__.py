"""The table of PRM families: one file and one line each."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from prm.families import (
    generative,
    implicit,
    math_shepherd,
    outcome,
    pqm,
    qwen,
    reason_eval,
    repirl,
    rlhflow,
    skywork,
    token_head,
)
from prm.families.base import FamilySpec

FAMILIES: Mapping[str, FamilySpec[Any]] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            implicit.SPEC,
            math_shepherd.SPEC,
            rlhflow.SPEC,
            qwen.SPEC,
            skywork.SPEC,
            token_head.SPEC,
            repirl.SPEC,
            reason_eval.SPEC,
            pqm.SPEC,
            outcome.SPEC,
            generative.SPEC,
        )
    }
)
