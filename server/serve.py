"""`rung serve`: check everything that can be checked, then serve until told to stop."""

import logging
import sys

import structlog
import uvicorn

from prm.errors import ModelFolderError, RungError
from prm.registry import Registry
from server.app import create_app
from server.auth import Keys
from server.key_file import KeyFile
from server.settings import Settings

logger = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serve; returns the exit code: 0 after a stop, 2 for what must not be served."""
    configure_logging(settings.log_format)
    try:
        keys = Keys(
            [key.get_secret_value() for key in settings.api_keys],
            KeyFile(settings.keys_file),
            is_loopback=settings.is_loopback,
        )
    except RungError as error:
        return _refuse(str(error))
    if not settings.is_loopback and not keys.exist:
        return _refuse(
            f"binding {settings.host} without API keys would let anyone in; set RUNG_API_KEYS, or "
            "make a key with `rung keys create --name NAME`, or bind 127.0.0.1"
        )
    refusals: list[ModelFolderError] = []

    def stop(refusal: ModelFolderError) -> None:
        refusals.append(refusal)
        server.should_exit = True

    try:
        registry = Registry.open(settings.models)
        app = create_app(settings, registry, on_refusal=stop)
    except RungError as error:
        return _refuse(str(error))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=10,
        )
    )
    for version in registry.live():
        logger.info("serving %s (%s)", version.key, version.manifest.kind)
    try:
        server.run()
    except SystemExit:
        return 1  # uvicorn has said why, for example that the port is taken
    if refusals:
        return _refuse(str(refusals[0]))
    # uvicorn says so itself when it could not bind.
    return 0 if server.started else 1


def configure_logging(log_format: str) -> None:
    """One line per event on stderr, from every library alike, as text or as JSON."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            renderer,
        ],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    # Of a Redis that is away, server.jobs.queue tells in a line what this tells in its whole stack.
    logging.getLogger("docket").setLevel(logging.ERROR)


def _refuse(message: str) -> int:
    print(f"rung: {message}", file=sys.stderr)
    return 2
