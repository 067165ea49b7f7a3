"""Publishing as the API does it, whichever way the files came."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio.to_thread

from adapters.errors import AdapterError
from adapters.registry.records import AdapterVersion
from server.api.context import ServerContext


async def publish(
    context: ServerContext, work: Callable[[], tuple[AdapterVersion, bool]]
) -> tuple[AdapterVersion, bool]:
    """Run a blocking publication beside the event loop, one at a time, and count how it went.

    What was published begins to load at once, so that its first request need not wait for that.
    """
    received = time.perf_counter()
    try:
        version, created = await anyio.to_thread.run_sync(work, limiter=context.publishing)
    except AdapterError:
        context.metrics.uploads.labels("refused").inc()
        raise
    context.metrics.uploads.labels("created" if created else "unchanged").inc()
    if created:
        context.metrics.published(version.ref, received)
    context.engine.prefetch(version.digest)
    return version, created
