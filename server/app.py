"""The HTTP application: parts, middleware, routes. Everything is passed in."""

import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prm.errors import ModelFolderError
from prm.registry import Registry
from server.auth import Keys
from server.errors import ERROR_RESPONSES, add_error_handlers, error_response
from server.jobs.feedback import retrainer_of
from server.key_file import KeyFile
from server.limits import BodyLimit, Permits
from server.routes import (
    chat,
    feedback,
    files,
    fine_tuning,
    models,
    operations,
    rerank,
    score,
    search,
    versions,
)
from server.services import Services
from server.settings import Settings
from server.telemetry import LATENCY_BUCKETS_S

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

logger = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    registry: Registry,
    *,
    on_refusal: Callable[[ModelFolderError], None] | None = None,
) -> FastAPI:
    """An application that serves these versions.

    `on_refusal` is called when the engine will not load them: serving has no point then.
    """
    services = Services(settings, registry)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        services.start(on_refusal)
        services.reloader.start()
        services.announcements.start()
        services.memory.start()
        services.start_jobs()
        retrainer = retrainer_of(services)
        retrainer.start()
        # Beside the engine, which takes longer: no search has to wait for them.
        services.answers.begin()
        yield
        await retrainer.aclose()
        await services.close()

    app = FastAPI(
        title="Rung",
        summary="Process reward models: step scores and test-time search.",
        version="0.1.0",
        lifespan=lifespan,
    )
    app.state.services = services
    app.state.permits = permits = Permits(settings.max_in_flight, services.telemetry)
    services.serving.while_waiting = permits.lent
    app.state.keys = Keys(
        [key.get_secret_value() for key in settings.api_keys],
        KeyFile(settings.keys_file),
        is_loopback=settings.is_loopback,
    )
    add_error_handlers(app)
    parts = (score, search, chat, rerank, models, versions, feedback, files, fine_tuning)
    for routes in parts:
        app.include_router(routes.router, responses=ERROR_RESPONSES)
    app.include_router(operations.router)
    Instrumentator(
        registry=services.telemetry.registry,
        should_group_status_codes=False,
        excluded_handlers=["/metrics", "/health/.*"],
    ).instrument(app, latency_lowr_buckets=LATENCY_BUCKETS_S)
    # What stands beside the file in an upload is small.
    uploads = {("POST", "/v1/files"): (settings.max_file_mb << 20) + (64 << 10)}
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, other=uploads)
    app.add_middleware(RequestId)
    return app


class RequestId:
    """ASGI middleware: every answer and every log line of a request carries the same id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] not in METHODS:
            # Every method becomes a label of the metrics; invented ones must not.
            await error_response(405, "no such method")(scope, receive, send)
            return
        request_id = uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)
