import re
from collections.abc import Callable
from pathlib import Path

import pytest

from prm.golden import golden_difference
from prm.manifest import ModelVersion
from prm.registry import load_version
from tests.factories import POLICY, PRM

Change = Callable[[list[float]], list[float]]


def difference(version: ModelVersion, change: Change) -> str | None:
    found = change(list(version.manifest.golden[0].raw))
    return golden_difference(version, 0, found, absolute=0.01, relative=0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw[:-1], "golden score 0: {n} numbers for {less} steps"),
        (lambda raw: [*raw[:-1], float("nan")], "golden score 0, number {less}: .*nan"),
        (lambda raw: [raw[0] + 1, *raw[1:]], "golden score 0, number 0: .* computed"),
    ],
    ids=["one less", "no number", "another"],
)
def test_what_is_not_the_golden_score_is_told(tiny_models: Path, change: Change, said: str) -> None:
    version = load_version(tiny_models / PRM / "1")
    count = len(version.manifest.golden[0].raw)
    found = difference(version, change)
    assert found is not None
    assert re.match(said.format(n=count, less=count - 1), found)


def test_errors_of_a_log_ratio_are_allowed_times_beta(tiny_models: Path) -> None:
    prm = load_version(tiny_models / PRM / "1")
    policy = load_version(tiny_models / POLICY / "1")

    def off(raw: list[float]) -> list[float]:
        return [raw[0] + 0.008, *raw[1:]]

    assert prm.manifest.kind == "prm"
    assert prm.manifest.recipe["beta"] == 0.5
    assert difference(prm, off) is not None
    assert difference(policy, off) is None
