"""Exceptions → HTTP answers, in one table. Bodies have OpenAI's shape; nothing internal leaks."""

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from prm.errors import (
    CallerError,
    Conflict,
    InvalidInput,
    ModelFault,
    NotFound,
    Overloaded,
    Unavailable,
    UnknownModel,
)
from server.field_names import request_model, valid_names
from server.schemas.common import ErrorBody, ErrorDetail

logger = logging.getLogger(__name__)

# What the API's description says of every route that takes a request.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 409, 413, 422, 429, 503)
}
CALLER_STATUS: dict[type[CallerError], tuple[int, str]] = {
    InvalidInput: (400, "invalid_input"),
    UnknownModel: (404, "model_not_found"),
    NotFound: (404, "not_found"),
    Conflict: (409, "conflict"),
}


class NotAuthenticated(Exception):
    """No key, or one that is not known here."""


class NotAllowed(Exception):
    """A known key without the scope that the route asks for."""


class ClientGone(Exception):
    """The caller closed the connection; nobody reads an answer."""


def add_error_handlers(app: FastAPI) -> None:
    """Map every exception that a route may raise."""

    @app.exception_handler(CallerError)
    async def _caller(_: Request, error: CallerError) -> JSONResponse:
        status, code = CALLER_STATUS[type(error)]
        return error_response(status, str(error), param=error.param, code=code)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return _validation_response(error.errors(), request_model(request))

    @app.exception_handler(Overloaded)
    async def _overloaded(_: Request, error: Overloaded) -> JSONResponse:
        return error_response(429, str(error), code="overloaded", retry_after_s=error.retry_after_s)

    @app.exception_handler(Unavailable)
    async def _unavailable(_: Request, error: Unavailable) -> JSONResponse:
        return error_response(
            503, str(error), code="unavailable", retry_after_s=error.retry_after_s
        )

    @app.exception_handler(ModelFault)
    async def _fault(_: Request, error: ModelFault) -> JSONResponse:
        logger.error("a model is unusable: %s", error)
        return error_response(500, str(error), code="model_fault")

    @app.exception_handler(TimeoutError)
    async def _late(_: Request, __: TimeoutError) -> JSONResponse:
        return error_response(
            503, "the request took longer than this server allows", code="timeout", retry_after_s=1
        )

    @app.exception_handler(ClientGone)
    async def _gone(_: Request, __: ClientGone) -> JSONResponse:
        # Nobody reads it; 499 is nginx's number for this, and tells it apart in the metrics.
        return error_response(499, "the client closed the connection")

    @app.exception_handler(NotAuthenticated)
    async def _unauthenticated(_: Request, error: NotAuthenticated) -> JSONResponse:
        response = error_response(401, str(error), code="invalid_api_key")
        response.headers["WWW-Authenticate"] = "Bearer"
        # The body may still be on its way, and nobody wants it.
        response.headers["Connection"] = "close"
        return response

    @app.exception_handler(NotAllowed)
    async def _not_allowed(_: Request, error: NotAllowed) -> JSONResponse:
        return error_response(403, str(error), code="insufficient_scope")

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        # FastAPI says only this much of a body that is no JSON for a reason other than its syntax:
        # not UTF-8, nested too deeply, a number of thousands of digits.
        if error.detail == "There was an error parsing the body":
            return error_response(400, "the body is not JSON in UTF-8", code="invalid_json")
        code = "too_large" if error.status_code == 413 else None
        return error_response(error.status_code, str(error.detail), code=code)

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> JSONResponse:
        logger.error("unexpected error in %s", request.url.path, exc_info=error)
        return error_response(500, "internal error; the server's log has more")


def error_response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    retry_after_s: float | None = None,
) -> JSONResponse:
    """An answer in OpenAI's error shape."""
    body = error_body(status, message, param=param, code=code)
    headers = {} if retry_after_s is None else {"Retry-After": str(math.ceil(retry_after_s))}
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)


def error_body(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> ErrorBody:
    """The body alone; a streamed search sends it as its last event."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return ErrorBody(
        error=ErrorDetail(
            message=_printable(message), type=kind, param=_printable(param), code=code
        )
    )


def _validation_response(errors: Sequence[Any], model: Any) -> JSONResponse:
    """The first thing wrong with a body; the caller's values are not repeated."""
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "syntax error")
        return error_response(400, f"the body is not valid JSON: {reason}", code="invalid_json")
    param = _field_name(first["loc"][1:])
    # The name of a type, put there by the union, is no field of the caller's.
    param = re.sub(r"^((?:search\.)?(?:strategy|answers)|method)\.\w+", r"\1", param)
    if not param and first["type"] in ("model_attributes_type", "missing"):
        return error_response(
            400,
            "send a JSON object with the header Content-Type: application/json",
            code="invalid_body",
        )
    message = str(first["msg"]).removeprefix("Value error, ")
    if valid := valid_names(first, model):
        message = valid
    if isinstance(given := first.get("input"), int | float):
        # Forty digits identify a number; JSON allows thousands.
        message += f", not {str(given)[:40]}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    where = f"{param}: " if param else ""
    return error_response(422, f"{where}{message}{more}", param=param or None, code=first["type"])


def _field_name(location: Sequence[str | int]) -> str:
    """('items', 3, 'steps', 0) → 'items[3].steps[0]'."""
    name = ""
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    return name


def _printable(text: str | None) -> str | None:
    """A lone surrogate in a field's name cannot be sent back as it came."""
    return None if text is None else text.encode("utf-8", "replace").decode()
