"""Server-sent events, in the framing that OpenAI's clients read."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

from pydantic_core import to_json
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api.errors import from_engine_error, internal_error
from server.engine.request import EngineError

logger = logging.getLogger(__name__)
DONE = b"data: [DONE]\n\n"
Body = Mapping[str, object]


class EventStream(StreamingResponse):
    """A streamed answer that runs `close` however it ends: finished, failed, or the client gone.

    Starlette leaves the iterator alone when the client goes away while a chunk is being sent; without `close`
    the sequences would run on until the garbage collector finds them.
    """

    def __init__(
        self,
        chunks: AsyncIterator[Iterable[Body]],
        close: Callable[[], Awaitable[None]],
        headers: Mapping[str, str],
    ) -> None:
        # Proxies such as nginx would collect the chunks otherwise.
        no_buffer = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events(chunks), headers={**headers, **no_buffer}, media_type="text/event-stream")
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()


async def events(chunks: AsyncIterator[Iterable[Body]]) -> AsyncIterator[bytes]:
    """Each chunk as an event, then `[DONE]`.

    A failure becomes an error event and the stream ends without `[DONE]`, so that half an answer can't pass
    for a whole one.
    """
    try:
        async for group in chunks:
            if data := b"".join(event(chunk) for chunk in group):
                yield data
    except EngineError as error:
        yield event(from_engine_error(error).body())
    except Exception:
        logger.exception("a streamed answer failed")
        yield event(internal_error().body())
    else:
        yield DONE


def event(chunk: Body) -> bytes:
    """One `data:` line; JSON has no raw line breaks, so one line is always enough."""
    return b"data: " + to_json(chunk) + b"\n\n"
