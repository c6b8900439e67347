"""A PRM's versions as the API tells of them: what serves, what did, what was refused and why."""

import asyncio
from collections.abc import Mapping

from prm.calibration import Calibration
from prm.errors import ModelFolderError, UnknownModel
from prm.manifest import ModelVersion, PrmManifest
from prm.registry import Pointer, Registry, Trial, Verdict, published, read_verdict, read_version
from server.calibrations import current_calibrations
from server.schemas.models import (
    CalibrationOut,
    PrmOut,
    State,
    TallyOut,
    TrialOut,
    VersionOut,
)
from server.services import Services
from server.trials import Tally


async def prm_out(services: Services, name: str) -> PrmOut:
    """A PRM with all its versions, the oldest first. Raises UnknownModel."""
    registry = services.registry
    live = registry.get(name)
    if live is None or not isinstance(live.manifest, PrmManifest):
        raise UnknownModel(f"no PRM named {name!r} is served here", param="name")
    name = live.manifest.name
    pointer = registry.pointers[name]
    known = {
        version.key: await current_calibrations(registry, version)
        for version in registry
        if version.manifest.name == name
    }
    listed = await asyncio.to_thread(_listed, registry, name)
    return PrmOut(
        id=name,
        family=live.manifest.family,
        live=pointer.live,
        canary=_trial_out(services, name, pointer.canary),
        shadow=_trial_out(services, name, pointer.shadow),
        previous=pointer.previous[0] if pointer.previous else None,
        step_separator=live.manifest.step_separator,
        aggregation=live.manifest.aggregation,
        threshold=live.manifest.threshold,
        context_limit=live.context_limit,
        versions=[
            _version_out(
                version,
                _state(pointer, version, verdict),
                verdict,
                services.reloader.failures.get(version.key),
                known.get(version.key, {}),
            )
            for version, verdict in listed
        ],
    )


def _listed(registry: Registry, name: str) -> list[tuple[ModelVersion, Verdict | None]]:
    """What lies there; a folder that is no version any more is left out."""
    found = []
    for version_id in published(registry.root, name):
        version = registry.get(f"{name}@{version_id}")
        try:
            version = version or read_version(registry.root / name / version_id)
            found.append((version, read_verdict(registry.root, name, version_id)))
        except ModelFolderError:
            continue
    return found


def _trial_out(services: Services, name: str, trial: Trial | None) -> TrialOut | None:
    if trial is None:
        return None
    tally = services.trials.tally(name, trial.version) or Tally()
    shadowed = tally.items if services.registry.pointers[name].shadow == trial else 0
    return TrialOut(
        version=trial.version,
        fraction=trial.fraction,
        seen=TallyOut(
            requests=tally.requests,
            failures=tally.failures,
            items=tally.items,
            score=tally.mean if tally.items else None,
            difference=tally.difference / shadowed if shadowed else None,
            distance=tally.distance / shadowed if shadowed else None,
        ),
    )


def _state(pointer: Pointer, version: ModelVersion, verdict: Verdict | None) -> State:
    state = pointer.state_of(version.manifest.version)
    is_rejected = state == "available" and verdict is not None and not verdict.passed
    return "rejected" if is_rejected else state


def _version_out(
    version: ModelVersion,
    state: State,
    verdict: Verdict | None,
    failure: str | None,
    calibrations: Mapping[str, Calibration],
) -> VersionOut:
    metrics = dict(version.manifest.metrics) if version.manifest.kind == "prm" else {}
    return VersionOut(
        id=version.manifest.version,
        created=version.manifest.created,
        state=state,
        reason=failure or (verdict.reason if verdict else None),
        weights_sha256=version.weights_sha256,
        metrics=metrics | (_gate_figures(verdict) if verdict else {}),
        calibrations=[_calibration_out(calibration) for calibration in calibrations.values()],
    )


def _gate_figures(verdict: Verdict) -> dict[str, float]:
    """What its gate measured of it."""
    report = verdict.report
    metric, side = report.get("metric"), report.get("new")
    if not isinstance(metric, str) or not isinstance(side, dict):
        return {}
    figures = {metric: side["figure"]["value"], "ece": side["ece"]}
    return {name: value for name, value in figures.items() if value is not None}


def _calibration_out(calibration: Calibration) -> CalibrationOut:
    return CalibrationOut(
        policy=calibration.policy,
        created=calibration.created,
        method=calibration.steps.method if calibration.steps else None,
        has_fitted_aggregation=calibration.response is not None,
        **calibration.fitted.model_dump(),
    )
