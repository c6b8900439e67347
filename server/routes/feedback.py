"""`/v1/feedback`: what served responses were worth, and what the labels come to."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request

from server.deps import KeyFirst, KeyId, MayLabel, MayTrain, Permit, ServicesDep, until_gone
from server.feedback.types import Label, plain_messages
from server.schemas.feedback import (
    FeedbackBatchOut,
    FeedbackOut,
    FeedbackReport,
    FeedbackRequest,
    LabelList,
    LabelOut,
)

router = APIRouter(tags=["feedback"], route_class=KeyFirst)
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="A request that comes again under the same key is taken once.",
    ),
]


@router.post("/v1/feedback", status_code=202, dependencies=[MayLabel, Permit])
async def give_feedback(
    request: Request,
    body: FeedbackRequest,
    services: ServicesDep,
    key_id: KeyId,
    idempotency_key: IdempotencyKey = None,
) -> FeedbackOut | FeedbackBatchOut:
    """Say whether a response is right. Answered when it is on disk, to stay."""
    accepted = services.feedback.accept(body, key_id=key_id, idempotency_key=idempotency_key)
    labels = await until_gone(request, accepted)
    if body.items is None:
        return _taken(labels[0])
    return FeedbackBatchOut(data=[_taken(label) for label in labels])


@router.get("/v1/feedback", dependencies=[MayTrain])
async def list_feedback(
    services: ServicesDep,
    after: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    model: Annotated[str | None, Query(max_length=140)] = None,
) -> LabelList:
    """Labels, the newest first; `after` is the last id of the page before."""
    labels, has_more = await services.feedback.page(limit=limit, after=after, model=model)
    return LabelList(
        data=[_kept(label) for label in labels],
        first_id=labels[0].id if labels else None,
        last_id=labels[-1].id if labels else None,
        has_more=has_more,
    )


@router.get("/v1/feedback/report", dependencies=[MayTrain])
async def report_feedback(
    services: ServicesDep, model: Annotated[str | None, Query(max_length=140)] = None
) -> FeedbackReport:
    """Whom a PRM's labels come from, what they weigh, and where they disagree."""
    return await services.feedback.report(model)


def _taken(label: Label) -> FeedbackOut:
    return FeedbackOut(id=label.id, correct=label.correct, note=label.note)


def _kept(label: Label) -> LabelOut:
    answer = label.answer
    return LabelOut(
        id=label.id,
        correct=label.correct,
        note=label.note,
        created=label.created,
        key_id=label.key_id,
        model=label.model,
        model_version=label.version,
        source=label.source,
        source_id=label.source_id,
        messages=plain_messages(answer.messages),
        response=answer.response,
        steps=None if answer.steps is None else list(answer.steps),
        score=answer.score,
        prm_correct=answer.prm_correct,
        answer=label.given_answer,
        metadata=label.metadata,
    )
