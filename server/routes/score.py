"""`POST /v1/prm/score`: a score for every step."""

from fastapi import APIRouter, Request

from server.deps import Caller, KeyFirst, MayScore, Permit, ServicesDep, until_gone
from server.schemas.score import ScoreRequest, ScoreResponse

router = APIRouter(tags=["score"], route_class=KeyFirst)


@router.post("/v1/prm/score", dependencies=[MayScore, Permit])
async def score(
    request: Request, body: ScoreRequest, services: ServicesDep, caller: Caller
) -> ScoreResponse:
    """Score every step of every item with a process reward model."""
    return await until_gone(request, services.scores.score(body, caller=caller))
