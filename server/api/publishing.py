"""Publishing as the API does it, whichever way the files came."""

from __future__ import annotations

from collections.abc import Callable

import anyio.to_thread

from adapters.errors import AdapterError, InvalidName
from server.api.context import ServerContext, Version


async def publish(
    context: ServerContext, name: str, work: Callable[[], tuple[Version, bool]]
) -> tuple[Version, bool]:
    """Run a blocking publication beside the event loop, one at a time, and count how it went."""
    try:
        if name == context.base.name:
            raise InvalidName(f"{name!r} is the name of the base model; choose another name for the adapter")
        version, created = await anyio.to_thread.run_sync(work, limiter=context.publishing)
    except AdapterError:
        context.metrics.uploads.labels("refused").inc()
        raise
    context.metrics.uploads.labels("created" if created else "unchanged").inc()
    return version, created
