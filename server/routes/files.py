"""`/v1/files`: training data as JSON Lines, in OpenAI's shape."""

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from prm.errors import Unavailable
from server.deps import MayTrain, ServicesDep
from server.errors import ClientGone
from server.files.receiving import receive_file
from server.jobs.store import JobStore
from server.schemas.files import FileDeleted, FileList, FileOut
from server.schemas.paging import After, page_of

router = APIRouter(tags=["training"], dependencies=[MayTrain])

# What the API's description says of a body that no type describes.
_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "properties": {
                        "purpose": {"type": "string", "enum": ["fine-tune"]},
                        "file": {"type": "string", "format": "binary"},
                    },
                }
            }
        },
    }
}


@router.post("/v1/files", openapi_extra=_UPLOAD)
async def upload_file(request: Request, services: ServicesDep) -> FileOut:
    """Upload JSON Lines for a training job; 400 names the line that is no JSON object."""
    kind = request.headers.get("content-type", "")
    key_id = getattr(request.state, "key_id", None)
    try:
        async with asyncio.timeout(services.settings.request_timeout_s):
            record = await receive_file(kind, request.stream(), services.files, key_id)
    except ClientDisconnect as error:
        raise ClientGone from error
    except TimeoutError:
        raise
    except OSError as error:
        raise Unavailable(
            f"the file cannot be kept: {error.strerror or error}", retry_after_s=60
        ) from error
    return FileOut.of(record)


@router.get("/v1/files")
async def list_files(
    services: ServicesDep,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(max_length=100)] = None,
) -> FileList:
    """All uploaded files."""
    records = await asyncio.to_thread(services.files.all)
    kept = [r for r in records if purpose in (None, r.purpose)]
    kept = kept if order == "desc" else kept[::-1]
    page, has_more = page_of([r.id for r in kept], kept, after, limit)
    return FileList(
        data=[FileOut.of(record) for record in page],
        has_more=has_more,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
    )


@router.get("/v1/files/{file_id}")
async def get_file(file_id: str, services: ServicesDep) -> FileOut:
    """One file."""
    return FileOut.of(await asyncio.to_thread(services.files.get, file_id))


@router.get("/v1/files/{file_id}/content", response_class=FileResponse)
async def get_content(file_id: str, services: ServicesDep) -> FileResponse:
    """Its lines, as they were sent."""
    record = await asyncio.to_thread(services.files.get, file_id)
    return FileResponse(services.files.content(record.id), media_type="application/jsonl")


@router.delete("/v1/files/{file_id}")
async def delete_file(file_id: str, services: ServicesDep) -> FileDeleted:
    """Forget a file: 409 while a job that is not finished uses it."""
    users = _users(services.jobs, file_id)
    await asyncio.to_thread(services.files.delete, file_id, users)
    return FileDeleted(id=file_id)


def _users(jobs: JobStore, file_id: str) -> Iterator[str]:
    """Jobs that are not finished and read this file."""
    for job_id in jobs.ids():
        request = jobs.record(job_id).request
        is_read = file_id in (request.training_file, request.validation_file)
        if is_read and not jobs.state(job_id).is_finished:
            yield job_id
