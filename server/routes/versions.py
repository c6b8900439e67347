"""`POST /v1/prm/models/{name}/promote`, `/rollback`, `/canary`: which version answers."""

from functools import partial

from fastapi import APIRouter

from prm.errors import UnknownModel
from prm.registry import promote, rollback, set_canary
from server.deps import KeyFirst, MayAdminister, ServicesDep
from server.schemas.models import CanaryIn, PrmOut, VersionIn
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
    version = before[0] if before else None
    await services.reloader.change(name, version, partial(rollback, name=name))
    return await prm_out(services, name)


@router.post("/v1/prm/models/{name}/canary")
async def start_canary(name: str, body: CanaryIn, services: ServicesDep) -> PrmOut:
    """Let a version answer a share of the callers; with `version` null it ends."""
    change = partial(
        set_canary, name=_served(services, name), version=body.version, fraction=body.fraction
    )
    await services.reloader.change(name, body.version, change)
    return await prm_out(services, name)


def _served(services: Services, name: str) -> str:
    """The name, if something answers for it. Raises UnknownModel."""
    if name not in services.registry.pointers:
        raise UnknownModel(f"no model named {name!r} is served here", param="name")
    return name
