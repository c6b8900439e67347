"""Golden scores beside those found: whoever scores a version has to reproduce them first."""

from collections.abc import Sequence

from prm.families import FAMILIES
from prm.manifest import GoldenScore, ModelVersion, PrmManifest
from prm.steps import join_steps
from prm.types import Trajectory


def golden_trajectory(golden: GoldenScore, separator: str) -> Trajectory:
    """What was scored. Raises InvalidInput for steps that cannot be joined."""
    response, steps = join_steps(golden.steps, separator)
    return Trajectory(messages=golden.messages, response=response, steps=steps)


def golden_difference(
    version: ModelVersion, number: int, found: Sequence[float], *, absolute: float, relative: float
) -> str | None:
    """In words, how these raw numbers differ from golden score `number`; None when they do not.

    `absolute` is the error allowed in a number of the model's own, `relative` one in the score.
    """
    wanted = version.manifest.golden[number].raw
    if len(found) != len(wanted):
        return f"golden score {number}: {len(wanted)} numbers for {len(found)} steps"
    absolute *= min(1.0, _raw_scale(version))
    for place, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        # Written so that NaN is refused too.
        if not abs(ours - theirs) <= absolute + relative * abs(theirs):
            return (
                f"golden score {number}, number {place}: the manifest says {theirs:.6f}, and "
                f"{ours:.6f} is computed"
            )
    return None


def _raw_scale(version: ModelVersion) -> float:
    if not isinstance(version.manifest, PrmManifest):
        return 1.0
    return float(FAMILIES[version.manifest.family].recipe_of(version).raw_scale)
