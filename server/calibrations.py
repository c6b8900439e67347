"""Which calibration a request means, and what it gets told when there is none."""

import asyncio
from collections.abc import Mapping

from prm.calibration import Calibration
from prm.errors import InvalidInput
from prm.manifest import ModelVersion
from prm.registry import Registry
from server.schemas.score import ScoreRequest

_REMEDY = "fit one with `rung eval calibrate`"


async def current_calibrations(
    registry: Registry, version: ModelVersion
) -> Mapping[str, Calibration]:
    """What is fitted to this version now, by policy: also what was written since the start."""
    folder = registry.calibrations(version)
    # A look at the folder takes some 25 µs; reading would hold up everybody else.
    if folder.has_changed():
        await asyncio.to_thread(folder.read_again)
    return folder.by_policy


def calibration_for(
    request: ScoreRequest, version: ModelVersion, known: Mapping[str, Calibration]
) -> Calibration | None:
    """The one that the request names, else the only one there is, else None.

    Raises InvalidInput naming the choice when the request cannot be answered without another.
    """
    needed_by = None
    if "calibrated" in request.include:
        needed_by = "include"
    elif request.aggregation == "fitted":
        needed_by = "aggregation"
    if request.reference_compat:
        if field := needed_by or (request.policy and "policy"):
            raise InvalidInput(
                f"{field}: calibrations are of scores at the exact step boundaries; leave out "
                f"{field} or reference_compat",
                param=field,
            )
        return None
    if request.policy is not None:
        if request.policy not in known:
            raise InvalidInput(
                f"policy: {version.key} has no calibration for {request.policy!r}; there is "
                f"{_listed(known)}; {_REMEDY} --policy {request.policy}",
                param="policy",
            )
        calibration = known[request.policy]
    elif len(known) == 1:
        (calibration,) = known.values()
    elif needed_by is None:
        return None
    elif known:
        raise InvalidInput(
            f"{needed_by}: {version.key} has a calibration for each of {_listed(known)}; "
            "name one in policy",
            param="policy",
        )
    else:
        raise InvalidInput(
            f"{needed_by}: {version.key} has no fitted calibration; leave it out, or {_REMEDY}",
            param=needed_by,
        )
    _check_parts(request, calibration)
    return calibration


def calibration_of_policy(policy: str, known: Mapping[str, Calibration]) -> Calibration | None:
    """A search knows who writes: the calibration for NAME, also where NAME@VERSION is asked for."""
    return known.get(policy) or known.get(policy.partition("@")[0])


def _check_parts(request: ScoreRequest, calibration: Calibration) -> None:
    if "calibrated" in request.include and calibration.steps is None:
        raise InvalidInput(
            f"include: the calibration for {calibration.policy!r} was fitted without labels of "
            f"steps; {_REMEDY} on a file with labels or first_error",
            param="include",
        )
    if request.aggregation == "fitted" and calibration.response is None:
        raise InvalidInput(
            f"aggregation: the calibration for {calibration.policy!r} was fitted without labels of "
            f"responses; {_REMEDY} on a file with correct",
            param="aggregation",
        )


def _listed(known: Mapping[str, Calibration]) -> str:
    return ", ".join(sorted(known)) or "none"
