"""The sequences of one HTTP request: run together, merged as they come, and freed together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import suppress
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from adapters.errors import AdapterError
from server.api.admission import admit
from server.api.context import Engine
from server.api.lease import Lease
from server.engine.request import EngineError, GenerationOutput, GenerationRequest, QueueFull
from server.metrics import RequestTimer

Event = tuple[int, GenerationOutput]
Result = TypeVar("Result")
PENDING = 64
"""Outputs that wait for a slow client before the sequences' readers wait too."""


class Generation:
    """Iterates over `(choice, output)` until every sequence is finished; `close` aborts those that are not.

    Owns the lease and the places in flight: what runs is held until the last sequence is over, and given back
    exactly once.
    """

    def __init__(self, lease: Lease, requests: Sequence[GenerationRequest], prompt_tokens: int) -> None:
        self._lease = lease
        self._admission = admit(lease.context, lease.tenant, len(requests), prompt_tokens)
        self._timer = RequestTimer(lease.context.metrics, lease.label, requests)
        self._queue: asyncio.Queue[Event | Exception] = asyncio.Queue(PENDING)
        self._left = len(requests)
        self._tasks = [
            asyncio.create_task(self._read(lease.context.engine, index, request))
            for index, request in enumerate(requests)
        ]

    async def _read(self, engine: Engine, index: int, request: GenerationRequest) -> None:
        outputs = engine.generate(request)
        try:
            async for output in outputs:
                self._admission.charge(len(output.token_ids))
                await self._queue.put((index, output))
                if output.finish_reason is not None:
                    return
            raise EngineError("a sequence ended without a reason")
        except AdapterError as error:
            await self._queue.put(self._lease.failure(error))
        except Exception as error:
            await self._queue.put(error)
        finally:
            if isinstance(outputs, AsyncGenerator):
                await outputs.aclose()

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Event:
        if not self._left:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, Exception):
            self._timer.outcome = "rejected" if isinstance(item, QueueFull) else "error"
            raise item
        index, output = item
        self._timer.record(index, output)
        if output.finish_reason is not None:
            self._left -= 1
            if not self._left:
                self._timer.outcome = "success"
        return item

    async def close(self) -> None:
        """Abort what still runs, wait until it is gone, and give back the lease."""
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            self._admission.close()
            self._lease.release()
            self._timer.close()


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled when the client goes away.

    Only for handlers that have read the whole body: from then on the one message left is the disconnect.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for pending in (task, gone):
            pending.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await pending


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
