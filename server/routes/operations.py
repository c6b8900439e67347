"""`/health/live`, `/health/ready`, `/metrics`: for whoever runs the server."""

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from prm.engine.client import EngineState
from server.deps import MayScore, ServicesDep

router = APIRouter(tags=["operations"])


class Alive(BaseModel):
    """The API process answers."""

    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    """Whether requests that need a model are served now, and by what.

    `code_answers` says whether programs can be run in the sandbox, which no other request needs.
    `policy_server` is its circuit breaker: while `open`, searches with its policies are 503.
    `reason` is `swapping` while a version is exchanged in its place: requests for it wait.
    """

    status: Literal["ready", "not_ready"]
    reason: Literal["swapping"] | None = None
    engine: Literal["starting", "ready", "refused", "closed"]
    device: str | None = None
    dtype: str | None = None
    restarts: int
    code_answers: Literal["starting", "available", "unavailable"]
    policy_server: Literal["closed", "open", "half_open"] | None = None


@router.get("/health/live")
async def live() -> Alive:
    """200 as long as this process can answer at all."""
    return Alive()


@router.get("/health/ready", responses={503: {"model": Readiness}})
async def ready(services: ServicesDep) -> Response:
    """200 when the engine has loaded and checked every version that serves, else 503."""
    engine = services.engine
    is_swapping = bool(services.serving.closed)
    is_ready = engine.state is EngineState.READY and not is_swapping
    breaker = services.policies.breaker
    body = Readiness(
        status="ready" if is_ready else "not_ready",
        reason="swapping" if is_swapping else None,
        engine=engine.state.value,
        device=engine.ready.device if engine.ready else None,
        dtype=engine.ready.dtype if engine.ready else None,
        restarts=engine.restarts,
        code_answers=services.sandbox.state,
        policy_server=breaker.state.value if breaker is not None else None,
    )
    return JSONResponse(body.model_dump(), status_code=200 if is_ready else 503)


@router.get("/metrics", dependencies=[MayScore], response_class=Response)
async def metrics(services: ServicesDep) -> Response:
    """Prometheus metrics; asks for a key where the other routes do."""
    return Response(generate_latest(services.telemetry.registry), media_type=CONTENT_TYPE_LATEST)
