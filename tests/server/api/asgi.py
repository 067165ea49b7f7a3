"""One ASGI exchange, message by message: what no HTTP client lets a test do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message

Headers = list[tuple[bytes, bytes]]
JSON: Headers = [(b"content-type", b"application/json")]


@dataclass
class Exchange:
    """Sends `chunks` as the body, then stays connected until `gone` is set.

    `hold_sends`: the client stops reading. `stays_open`: the body never ends.
    """

    app: ASGIApp
    path: str
    chunks: Iterable[bytes]
    headers: Headers = field(default_factory=lambda: list(JSON))
    messages: list[Message] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    read: int = 0
    hold_sends: bool = False
    stays_open: bool = False
    method: str = "POST"

    async def run(self) -> None:
        chunks, ended = iter(self.chunks), False

        async def receive() -> Message:
            nonlocal ended
            if not ended:
                chunk = next(chunks, None)
                ended = chunk is None
                self.read += len(chunk or b"")
                if chunk is not None or not self.stays_open:
                    return {"type": "http.request", "body": chunk or b"", "more_body": not ended}
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            self.messages.append(message)
            if self.hold_sends and message["type"] == "http.response.body":
                await asyncio.sleep(3600)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": self.headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        await self.app(scope, receive, send)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def error(self) -> dict[str, Any]:
        error = json.loads(self.body)["error"]
        assert isinstance(error, dict)
        return error


def events(text: str) -> list[Any]:
    """The data of a server-sent event stream; `[DONE]` as it is."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    lines = [block.removeprefix("data: ") for block in blocks]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
