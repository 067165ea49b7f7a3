"""Bounds on request bodies: by the declared length, and again while the bytes come in."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import APIError
from server.settings import MIB, Settings

UPLOAD_PATH = "/v1/adapters"


@dataclass(frozen=True)
class BodyLimit:
    """ASGI middleware: a body over its route's limit is a 413, and never more than the limit is read."""

    app: ASGIApp
    settings: Settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self._limit(scope["path"])
        if _declared_length(scope) > limit:
            await _too_large(limit).response()(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            return message

        await self.app(scope, counted, send)

    def _limit(self, path: str) -> int:
        # One MiB beside the weights, for the config, the name and the multipart framing.
        return (self.settings.max_adapter_mb + 1 if path == UPLOAD_PATH else self.settings.max_body_mb) * MIB


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


def _too_large(limit: int) -> APIError:
    message = f"The request body is larger than {limit // MIB} MiB, the most that this route takes."
    return APIError(413, message, code="body_too_large", headers={"connection": "close"})
