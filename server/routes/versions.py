"""`POST /v1/prm/models/{name}/promote`, `/rollback`, `/canary`, `/shadow`: who answers."""

import asyncio
from functools import partial

from fastapi import APIRouter

from prm.errors import UnknownModel
from prm.registry import promote, published, rollback, try_out
from prm.registry.pointer import Kind
from server.deps import KeyFirst, MayAdminister, ServicesDep
from server.schemas.models import PrmOut, TrialIn, VersionIn
from server.services import Services
from server.versions import prm_out

router = APIRouter(tags=["models"], route_class=KeyFirst, dependencies=[MayAdminister])


@router.post("/v1/prm/models/{name}/promote")
async def promote_version(name: str, body: VersionIn, services: ServicesDep) -> PrmOut:
    """Make a version live: 409 for one that its gate has rejected, or that cannot be served."""
    change = partial(promote, name=_served(services, name), version=body.version)
    await services.reloader.change(name, body.version, change)
    return await prm_out(services, name)


@router.post("/v1/prm/models/{name}/rollback")
async def roll_back(name: str, services: ServicesDep) -> PrmOut:
    """Back to the version that was live before: 409 where there is none."""
    before = services.registry.pointers[_served(services, name)].previous
    there = await asyncio.to_thread(published, services.registry.root, name)
    version = next((old for old in before if old in there), None)
    await services.reloader.change(name, version, partial(rollback, name=name))
    return await prm_out(services, name)


@router.post("/v1/prm/models/{name}/canary")
async def start_canary(name: str, body: TrialIn, services: ServicesDep) -> PrmOut:
    """Let a version answer a share of the callers; with `version` null it ends."""
    return await _try_out(services, name, "canary", body)


@router.post("/v1/prm/models/{name}/shadow")
async def start_shadow(name: str, body: TrialIn, services: ServicesDep) -> PrmOut:
    """Let a version score a share of the requests beside the live one, whose scores are given."""
    return await _try_out(services, name, "shadow", body)


async def _try_out(services: Services, name: str, kind: Kind, body: TrialIn) -> PrmOut:
    change = partial(
        try_out,
        name=_served(services, name),
        kind=kind,
        version=body.version,
        fraction=body.fraction,
    )
    await services.reloader.change(name, body.version, change, on_trial=True)
    return await prm_out(services, name)


def _served(services: Services, name: str) -> str:
    """The name, if something answers for it. Raises UnknownModel."""
    if name not in services.registry.pointers:
        raise UnknownModel(f"no model named {name!r} is served here", param="name")
    return name
