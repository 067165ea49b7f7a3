"""Bounds on request bodies: by the declared length, and again while the bytes come in.

A client that is still sending when it is refused would get a reset instead of the answer. So what is left of
a body is read and thrown away before an error is sent, as far as that is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import APIError
from server.settings import MIB, Settings

UPLOAD_PATH = "/v1/adapters"
FILES_PATH = "/v1/files"
DISCARD_BYTES = 64 * MIB
DISCARD_SECONDS = 2.0


@dataclass(frozen=True)
class BodyLimit:
    """ASGI middleware: a body over its route's limit is a 413, and never more than the limit is kept."""

    app: ASGIApp
    settings: Settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self._limit(scope["path"])
        received = 0
        # A client that asked first ("Expect: 100-continue") sends nothing before it is told to.
        sending = _header(scope, b"expect") is None

        async def counted() -> Message:
            nonlocal received, sending
            message = await receive()
            sending = bool(message.get("more_body"))
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            return message

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400 and sending:
                await _discard(receive)
            await send(message)

        if _declared_length(scope) > limit:
            await _too_large(limit).response()(scope, receive, answer)
        else:
            await self.app(scope, counted, answer)

    def _limit(self, path: str) -> int:
        # One MiB beside the file, for the config, the name and the multipart framing.
        files = {
            UPLOAD_PATH: self.settings.max_adapter_mb + 1,
            FILES_PATH: self.settings.max_training_file_mb + 1,
        }
        return files.get(path, self.settings.max_body_mb) * MIB


def _declared_length(scope: Scope) -> int:
    value = _header(scope, b"content-length") or b""
    return int(value[:20]) if value.isdigit() else 0


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == wanted), None)


async def _discard(receive: Receive) -> None:
    """Read to the end of the body, or as far as the bounds go."""
    left = DISCARD_BYTES
    with anyio.move_on_after(DISCARD_SECONDS):
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            if not message.get("more_body"):
                return


def _too_large(limit: int) -> APIError:
    message = f"The request body is larger than {limit // MIB} MiB, the most that this route takes."
    return APIError(413, message, code="body_too_large", headers={"connection": "close"})
