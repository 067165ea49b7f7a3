"""Every error that leaves the server, in OpenAI's shape: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from adapters.errors import (
    AdapterConflict,
    AdapterError,
    AdapterForbidden,
    AdapterNotFound,
    AdapterTooLarge,
    InvalidAlias,
    InvalidName,
    KeyNotFound,
    ProofUnavailable,
    QuotaExceeded,
    RegistryUnavailable,
    TenantNotFound,
)
from server.engine.request import EngineError, QueueFull

log = logging.getLogger(__name__)
INVALID = "invalid_request_error"
MESSAGE_CHARS = 1000
CLIENT_CLOSED = 499
"""Nobody reads this answer; the status is for the access log (nginx's convention)."""


class APIError(Exception):
    """An answer other than 200. `param` names the field of the request, `code` is fit for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | int | None = None,
        kind: str = INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.kind, self.headers = kind, headers

    @property
    def line(self) -> str:
        """The message as one line of bounded length."""
        line = " ".join(self.message.split())
        return line if len(line) <= MESSAGE_CHARS else line[: MESSAGE_CHARS - 3] + "..."

    def body(self) -> dict[str, object]:
        """The JSON body: one line of text, and never a stack trace."""
        return {"error": {"message": self.line, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, headers=self.headers)


def model_not_found(model: str, param: str = "model") -> APIError:
    """Unknown names are errors, never the base."""
    return APIError(404, f"The model `{model}` does not exist.", param=param, code="model_not_found")


def internal_error() -> APIError:
    """What the client may know of an exception; the rest goes to the log."""
    return APIError(500, "Internal server error.", kind="server_error", code="internal_error")


def busy(message: str, code: str, seconds: int) -> APIError:
    """A 429 that says when to come back."""
    headers = {"retry-after": str(seconds)}
    return APIError(429, message, kind="rate_limit_error", code=code, headers=headers)


def draining() -> APIError:
    """The server finishes what runs and takes nothing new."""
    return APIError(
        503,
        "The server is shutting down; send the request again elsewhere.",
        kind="server_error",
        code="draining",
        headers={"retry-after": "1", "connection": "close"},
    )


def from_adapter_error(error: AdapterError, param: str | None = None) -> APIError:
    """One HTTP status for each class of `adapters.errors`."""
    for kind, status, code in (
        (AdapterTooLarge, 413, "adapter_too_large"),
        (InvalidName, 400, "invalid_name"),
        (InvalidAlias, 400, "invalid_alias"),
        (AdapterNotFound, 404, "adapter_not_found"),
        (TenantNotFound, 404, "tenant_not_found"),
        (KeyNotFound, 404, "key_not_found"),
        (AdapterForbidden, 403, "adapter_forbidden"),
        (QuotaExceeded, 403, "quota_exceeded"),
        (AdapterConflict, 409, "adapter_conflict"),
    ):
        if isinstance(error, kind):
            return APIError(status, str(error), param=param, code=code)
    if isinstance(error, ProofUnavailable):
        return APIError(503, str(error), param=param, kind="server_error", code="proof_unavailable")
    if isinstance(error, RegistryUnavailable):
        return _registry_unavailable(error)
    return APIError(400, str(error), param=param, code="invalid_adapter")


def _registry_unavailable(error: RegistryUnavailable) -> APIError:
    """Where the database and the store are, and why they fail, is for the log alone."""
    log.warning("%s", error)
    return APIError(
        503,
        "The registry's database, or the store of its files, does not answer; try again in a moment.",
        kind="server_error",
        code="registry_unavailable",
        headers={"retry-after": "5"},
    )


def from_engine_error(error: EngineError, available: bool = True) -> APIError:
    """A full queue asks the client to come back; anything else is the server's fault.

    A server that is not `available` answers 503, so that a load balancer tries another one.
    """
    if isinstance(error, QueueFull):
        return busy("Too many requests are waiting; try again in a moment.", "queue_full", 1)
    return APIError(
        500 if available else 503, f"The engine failed: {error}", kind="server_error", code="engine_error"
    )


def from_validation(error: ValidationError | RequestValidationError) -> APIError:
    """The first thing wrong, in one line that begins with the field's name."""
    first = error.errors()[0]
    name = field_name(first["loc"])
    if first["type"] == "extra_forbidden":
        text = f"Unrecognized request argument supplied: {name}"
        return APIError(400, text, param=name, code="unknown_field")
    if first["type"] == "missing":
        return APIError(400, f"Missing required parameter: '{name}'.", param=name, code="missing_field")
    text = f"{name}: {first['msg']}" if name else str(first["msg"])
    code = "unsupported_parameter" if first["type"] == "unsupported" else None
    return APIError(400, text, param=name or None, code=code)


def field_name(location: Sequence[int | str]) -> str:
    """`("messages", 0, "content")` as `messages[0].content`.

    Parts in angle brackets are the tags of pydantic's unions, and `query` says where FastAPI looked; neither
    is part of the request.
    """
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part != "query" and not part.startswith("<"):
            name += f".{part}" if name else part
    return name[:200]


def add_error_handlers(app: FastAPI) -> None:
    """Give `app` one handler for each family of errors."""

    @app.exception_handler(APIError)
    async def api_error(request: Request, error: APIError) -> Response:
        return error.response()

    @app.exception_handler(AdapterError)
    async def adapter_error(request: Request, error: AdapterError) -> Response:
        return from_adapter_error(error).response()

    @app.exception_handler(EngineError)
    async def engine_error(request: Request, error: EngineError) -> Response:
        context = request.app.state.context
        return from_engine_error(error, context.status == "ok").response()

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return from_validation(error).response()

    @app.exception_handler(ClientDisconnect)
    async def client_gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return _http(request, error).response()

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        # Starlette raises the exception again after this answer, so the ASGI server logs the trace.
        return internal_error().response()


def _http(request: Request, error: HTTPException) -> APIError:
    route = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return APIError(404, f"Unknown request URL: {route}.", code="unknown_url")
    if error.status_code == 405:
        message = f"Not allowed: {route}."
        return APIError(405, message, code="method_not_allowed", headers=error.headers)
    return APIError(error.status_code, str(error.detail), headers=error.headers)
