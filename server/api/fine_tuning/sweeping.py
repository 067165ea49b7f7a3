"""Files whose time is over go by themselves, while the server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.concurrency import run_in_threadpool

from adapters.errors import AdapterError
from server.jobs.service import Service

log = logging.getLogger(__name__)
SWEEP_SECONDS = 600.0


@asynccontextmanager
async def sweeping(service: Service | None) -> AsyncIterator[None]:
    """At once, and then every ten minutes, for the length of the block."""
    if service is None:
        yield
        return
    task = asyncio.create_task(_sweep(service))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _sweep(service: Service) -> None:
    while True:
        try:
            gone = await run_in_threadpool(service.files.sweep)
            if gone:
                log.info("%d training files have expired", len(gone))
        except (AdapterError, OSError) as error:  # the next turn may find the database and the disk back
            log.warning("training files could not be swept: %s", error)
        await asyncio.sleep(SWEEP_SECONDS)
