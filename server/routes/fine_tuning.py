"""`/v1/fine_tuning/jobs`: training in the background, in OpenAI's shape. See docs/jobs.md."""

import asyncio
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from prm.errors import InvalidInput
from server.deps import KeyFirst, MayTrain, ServicesDep
from server.jobs import asking
from server.jobs.create import create_job
from server.jobs.following import follow
from server.jobs.store import JobStore
from server.jobs.views import checkpoints_of, job_out
from server.schemas.fine_tuning import CheckpointList, EventList, JobList, JobOut, JobRequest
from server.schemas.paging import After, page_of

router = APIRouter(tags=["training"], route_class=KeyFirst, dependencies=[MayTrain])

_JOBS = "/v1/fine_tuning/jobs"
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.post(_JOBS)
async def create(request: Request, body: JobRequest, services: ServicesDep) -> JobOut:
    """Accept a job: what is wrong with it is said here, and not after an hour."""
    key_id = getattr(request.state, "key_id", None)
    record = await create_job(services, body, key_id)
    return await asyncio.to_thread(job_out, services.jobs, record.id)


@router.get(_JOBS)
async def list_jobs(
    request: Request, services: ServicesDep, after: After = None, limit: Limit = 20
) -> JobList:
    """Jobs, the newest first; `metadata[KEY]=VALUE` keeps those that have it."""
    wanted = _metadata_filter(request.query_params)
    jobs, has_more = await asyncio.to_thread(_page, services.jobs, wanted, after, limit)
    return JobList(data=jobs, has_more=has_more)


@router.get(_JOBS + "/{job_id}")
async def retrieve(job_id: str, services: ServicesDep) -> JobOut:
    """One job."""
    return await asyncio.to_thread(job_out, services.jobs, job_id)


@router.post(_JOBS + "/{job_id}/cancel")
async def cancel(job_id: str, services: ServicesDep) -> JobOut:
    """End it: 409 when it is over."""
    await asyncio.to_thread(asking.cancel, services.jobs, job_id)
    return await asyncio.to_thread(job_out, services.jobs, job_id)


@router.post(_JOBS + "/{job_id}/pause")
async def pause(job_id: str, services: ServicesDep) -> JobOut:
    """Stop it behind a checkpoint: 409 when it is over."""
    await asyncio.to_thread(asking.pause, services.jobs, job_id)
    return await asyncio.to_thread(job_out, services.jobs, job_id)


@router.post(_JOBS + "/{job_id}/resume")
async def resume(job_id: str, services: ServicesDep) -> JobOut:
    """Go on from its last checkpoint: 409 for what neither was paused nor has failed."""
    await asyncio.to_thread(asking.resume, services.jobs, services.files, job_id)
    await services.announce(job_id)
    return await asyncio.to_thread(job_out, services.jobs, job_id)


@router.get(
    _JOBS + "/{job_id}/events",
    response_model=EventList,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def list_events(
    job_id: str,
    services: ServicesDep,
    after: After = None,
    limit: Limit = 20,
    stream: bool = False,
) -> EventList | StreamingResponse:
    """What happened to it, the newest first; `stream=true`: from the oldest on, to its end."""
    if stream:
        await asyncio.to_thread(services.jobs.folder, job_id)
        return StreamingResponse(
            follow(services.jobs, job_id, after),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
    events, has_more = await asyncio.to_thread(services.jobs.events, job_id, after, limit)
    return EventList(data=events, has_more=has_more)


@router.get(_JOBS + "/{job_id}/checkpoints")
async def list_checkpoints(
    job_id: str, services: ServicesDep, after: After = None, limit: Limit = 10
) -> CheckpointList:
    """The states that it can go on from, the newest first."""
    found = await asyncio.to_thread(checkpoints_of, services.jobs, job_id)
    page, has_more = page_of([each.id for each in found], found, after, limit)
    return CheckpointList(
        data=page,
        has_more=has_more,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
    )


def _page(
    store: JobStore, wanted: Mapping[str, str] | None, after: str | None, limit: int
) -> tuple[list[JobOut], bool]:
    ids = [job_id for job_id in store.ids() if _has(store, job_id, wanted)]
    page, has_more = page_of(ids, ids, after, limit)
    return [job_out(store, job_id) for job_id in page], has_more


def _has(store: JobStore, job_id: str, wanted: Mapping[str, str] | None) -> bool:
    found = store.record(job_id).request.metadata
    if wanted is None:
        return found is None
    return all((found or {}).get(key) == value for key, value in wanted.items())


def _metadata_filter(query: Mapping[str, str]) -> Mapping[str, str] | None:
    """What is asked for: keys and values, nothing, or jobs without any (None)."""
    named = {
        key[len("metadata[") : -1]: value
        for key, value in query.items()
        if key.startswith("metadata[") and key.endswith("]")
    }
    if "metadata" not in query:
        return named
    if query["metadata"] != "null" or named:
        raise InvalidInput(
            "metadata: filter with metadata[KEY]=VALUE, or with metadata=null for jobs without any",
            param="metadata",
        )
    return None
