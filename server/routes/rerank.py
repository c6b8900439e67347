"""`POST /v1/rerank`, `/v2/rerank`, `/rerank`: best-of-n among candidates made elsewhere."""

from fastapi import APIRouter, Request

from server.deps import Caller, KeyFirst, MayScore, Permit, ServicesDep, until_gone
from server.rerank import rerank
from server.schemas.rerank import RerankRequest, RerankResponse

router = APIRouter(tags=["rerank"], route_class=KeyFirst)


@router.post("/rerank", dependencies=[MayScore, Permit])
@router.post("/v1/rerank", dependencies=[MayScore, Permit])
async def rerank_v1(
    request: Request, body: RerankRequest, services: ServicesDep, caller: Caller
) -> RerankResponse:
    """Candidate solutions (`documents`) of a problem (`query`), best first by a PRM."""
    return await until_gone(request, rerank(services.scores, body, "1", caller=caller))


@router.post("/v2/rerank", dependencies=[MayScore, Permit])
async def rerank_v2(
    request: Request, body: RerankRequest, services: ServicesDep, caller: Caller
) -> RerankResponse:
    """The same, as version 2 of Cohere's API names itself."""
    return await until_gone(request, rerank(services.scores, body, "2", caller=caller))
