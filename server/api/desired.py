"""From what the registry says should stay loaded to what the engine keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from server.api.context import ServerContext


@contextmanager
def desired_loaded(context: ServerContext) -> Iterator[None]:
    """Within the block, the engine keeps what the registry wants, whoever changes that."""
    loop = asyncio.get_running_loop()
    context.registry.on_change = lambda: _in_loop(loop, context)
    apply_desired(context)
    try:
        yield
    finally:
        context.registry.on_change = lambda: None


def apply_desired(context: ServerContext) -> None:
    """Pin what is to be pinned, and load what is wanted for the first time since the start; returns at once.

    What was preloaded and has been evicted since stays away until it is asked for. Tenants get the shares of
    the batch that their quotas say.
    """
    context.engine.set_weights(
        {tenant.name: tenant.quota.weight for tenant in context.registry.tenants.list()}
    )
    wanted = context.registry.wanted()
    for version in wanted:
        context.metrics.named(version.digest, version.full_name)
    context.engine.pin({version.digest for version in wanted if version.desired == "pinned"})
    digests = frozenset(version.digest for version in wanted)
    for digest in digests - context.applied:
        context.engine.prefetch(digest)
    context.applied = digests


def _in_loop(loop: asyncio.AbstractEventLoop, context: ServerContext) -> None:
    """The registry tells of a change in whichever thread made it."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(apply_desired, context)
