"""`GET /v1/models`, `GET /v1/prm/models`: what is served."""

import time

from fastapi import APIRouter

from prm.calibration import Calibration
from prm.errors import UnknownModel
from prm.manifest import ModelVersion, PrmManifest
from server.calibrations import current_calibrations
from server.deps import MayScore, ServicesDep
from server.schemas.models import (
    CalibrationOut,
    ModelList,
    ModelOut,
    PrmList,
    PrmOut,
    VersionOut,
)
from server.services import Services

router = APIRouter(tags=["models"], dependencies=[MayScore])


@router.get("/v1/models")
async def list_models(services: ServicesDep) -> ModelList:
    """Every policy and PRM that a request may name, the policy server's among them."""
    local = [
        ModelOut(
            id=version.manifest.name,
            created=version.manifest.created,
            kind=version.manifest.kind,
            version=version.manifest.version,
            max_model_len=version.context_limit,
        )
        for version in services.registry.live()
    ]
    remote = await services.policies.remote_names()
    kept = [model for model in local if model.kind == "prm" or model.id not in remote]
    return ModelList(
        data=kept
        + [
            ModelOut(
                id=name,
                created=int(time.time()),
                owned_by="policy server",
                kind="policy",
                version="unversioned",
            )
            for name in remote
        ]
    )


@router.get("/v1/models/{name}")
async def get_model(name: str, services: ServicesDep) -> ModelOut:
    """One served model."""
    for model in (await list_models(services)).data:
        if model.id == name:
            return model
    raise UnknownModel(f"no model named {name!r} is served here", param="name")


@router.get("/v1/prm/models")
async def list_prms(services: ServicesDep) -> PrmList:
    """Every PRM with its versions."""
    return PrmList(
        data=[
            await _prm_out(services, version, version.manifest)
            for version in services.registry.live()
            if isinstance(version.manifest, PrmManifest)
        ]
    )


@router.get("/v1/prm/models/{name}")
async def get_prm(name: str, services: ServicesDep) -> PrmOut:
    """One PRM with its versions."""
    version = services.registry.get(name)
    if version is None or not isinstance(version.manifest, PrmManifest):
        raise UnknownModel(f"no PRM named {name!r} is served here", param="name")
    return await _prm_out(services, version, version.manifest)


async def _prm_out(services: Services, version: ModelVersion, manifest: PrmManifest) -> PrmOut:
    known = await current_calibrations(services.registry, version)
    return PrmOut(
        id=manifest.name,
        family=manifest.family,
        live=manifest.version,
        step_separator=manifest.step_separator,
        aggregation=manifest.aggregation,
        threshold=manifest.threshold,
        context_limit=version.context_limit,
        versions=[
            VersionOut(
                id=manifest.version,
                created=manifest.created,
                state="live",
                weights_sha256=version.weights_sha256,
                metrics=dict(manifest.metrics),
                calibrations=[_calibration_out(calibration) for calibration in known.values()],
            )
        ],
    )


def _calibration_out(calibration: Calibration) -> CalibrationOut:
    return CalibrationOut(
        policy=calibration.policy,
        created=calibration.created,
        method=calibration.steps.method if calibration.steps else None,
        has_fitted_aggregation=calibration.response is not None,
        **calibration.fitted.model_dump(),
    )
