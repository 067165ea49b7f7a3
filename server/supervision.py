"""Training in a running server: its supervisor, from the first request to the last."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from adapters.registry.records import AdapterVersion
from adapters.registry.registry import Registry
from server.api.context import ServerContext
from server.api.publishing import publish
from server.jobs.publication import Publication, Work
from server.jobs.service import Service
from server.jobs.site import Bounds, Site
from server.jobs.supervisor import Supervisor
from server.settings import GIB, Settings


@asynccontextmanager
async def supervised(
    context: ServerContext, registry: Registry, base: str
) -> AsyncIterator[Callable[[], None]]:
    """Train for the length of the block, if this server does; yields what tells jobs to stop.

    Args:
        base: a folder or a hub id.
    """
    if context.training is None:
        yield lambda: None
        return
    supervisor = Supervisor(_site(context, context.training, registry, base))
    await asyncio.to_thread(supervisor.start)
    try:
        yield supervisor.stop
    finally:
        await asyncio.to_thread(supervisor.close)


def _site(context: ServerContext, service: Service, registry: Registry, base: str) -> Site:
    loop = asyncio.get_running_loop()
    stopping = threading.Event()

    def publish_here(work: Work) -> tuple[AdapterVersion, bool]:
        return asyncio.run_coroutine_threadsafe(publish(context, work), loop).result()

    return Site(
        jobs=service.jobs,
        files=service.files,
        publication=Publication(registry, publish_here, stopping),
        metrics=context.metrics,
        folder=context.settings.data_dir / "training" / "jobs",
        base=base,
        bounds=_bounds(context.settings),
        stopping=stopping,
    )


def _bounds(settings: Settings) -> Bounds:
    memory = settings.training_memory_gb
    return Bounds(
        settings.training_threads,
        None if memory is None else int(memory * GIB),
        settings.training_nice,
        settings.training_together,
        settings.training_device != "cpu",
    )
