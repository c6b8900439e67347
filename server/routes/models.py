"""`GET /v1/models`, `GET /v1/prm/models`: what is served."""

import time

from fastapi import APIRouter

from prm.errors import UnknownModel
from server.deps import MayScore, ServicesDep
from server.schemas.models import ModelList, ModelOut, PrmList, PrmOut
from server.versions import prm_out

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
    names = [v.manifest.name for v in services.registry.live() if v.manifest.kind == "prm"]
    return PrmList(data=[await prm_out(services, name) for name in names])


@router.get("/v1/prm/models/{name}")
async def get_prm(name: str, services: ServicesDep) -> PrmOut:
    """One PRM with its versions, and what a gate said of them."""
    return await prm_out(services, name)
