"""Ranking candidates made elsewhere: one scoring request, sorted."""

import re
from typing import Literal

from prm.errors import CallerError
from server.schemas.rerank import (
    ApiVersion,
    DocumentOut,
    RerankMeta,
    RerankRequest,
    RerankResponse,
    RerankResult,
    RerankUsage,
)
from server.schemas.score import ScoreItem, ScoreRequest, ScoreResponse
from server.score_service import ScoreService


async def rerank(
    scores: ScoreService,
    request: RerankRequest,
    api_version: Literal["1", "2"],
    *,
    caller: str | None = None,
) -> RerankResponse:
    """Cut every candidate into steps, score it, and sort by the version's own aggregate.

    Equal scores stay in the order in which they were sent. Raises CallerError naming
    `documents[i]` or `query`, Unavailable.
    """
    items = [ScoreItem(problem=request.query, response=text) for text in request.documents]
    try:
        scored = await scores.score(ScoreRequest(model=request.model, items=items), caller=caller)
    except CallerError as error:
        param = error.param and _as_sent(error.param)
        raise type(error)(_as_sent(str(error)), param=param) from error
    return _response(request, scored, api_version)


def _response(
    request: RerankRequest, scored: ScoreResponse, api_version: Literal["1", "2"]
) -> RerankResponse:
    best = sorted(scored.data, key=lambda item: (-item.score, item.index))
    # vLLM's and Jina's clients expect the text; who does not want it says so.
    with_text = request.return_documents is not False
    usage = scored.usage
    return RerankResponse(
        id=scored.id.replace("prm-", "rerank-", 1),
        model=scored.model,
        model_version=scored.model_version,
        results=[
            RerankResult(
                index=item.index,
                relevance_score=item.score,
                document=DocumentOut(text=request.documents[item.index]) if with_text else None,
            )
            for item in best[: request.top_n or None]
        ],
        usage=RerankUsage(
            prompt_tokens=usage.prompt_tokens,
            total_tokens=usage.total_tokens,
            cached_tokens=usage.cached_tokens,
            scored_tokens=usage.scored_tokens,
        ),
        meta=RerankMeta(api_version=ApiVersion(version=api_version)),
    )


def _as_sent(text: str) -> str:
    """`items[3].response` → `documents[3]`, `items[3].problem` → `query`."""
    text = re.sub(r"items\[\d+\]\.problem", "query", text)
    text = re.sub(r"items\[(\d+)\](\.response)?", r"documents[\1]", text)
    return re.sub(r"^items\b", "documents", text)
