"""Publishing as the API does it, whichever way the files came."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import anyio
import anyio.to_thread

from adapters.errors import AdapterError, InvalidAdapter, ProofUnavailable, RegistryUnavailable
from adapters.registry.records import AdapterVersion
from server.api.context import ServerContext

log = logging.getLogger(__name__)
RETRY_SECONDS = 5.0
"""Until a check that could not be made is tried again."""


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


def check_later(context: ServerContext, version: AdapterVersion) -> None:
    """Have an uploaded version checked after its request was answered; its state says how that went."""
    # A scope, unlike a task that is cancelled, lets the thread of a check that runs come to its end.
    scope = anyio.CancelScope()
    task = asyncio.create_task(_check(context, version, scope))
    context.checks[task] = scope
    task.add_done_callback(context.checks.pop)


async def stop_checks(context: ServerContext) -> None:
    """What waits for its check goes on waiting, for the next start; a check that runs is over after this."""
    tasks = list(context.checks)
    for scope in context.checks.values():
        scope.cancel()
    await asyncio.gather(*tasks)


async def _check(context: ServerContext, version: AdapterVersion, scope: anyio.CancelScope) -> None:
    with scope:
        while not await _checked(context, version):
            await asyncio.sleep(RETRY_SECONDS)


async def _checked(context: ServerContext, version: AdapterVersion) -> bool:
    """Whether there is nothing left to try."""

    def work() -> tuple[AdapterVersion, bool]:
        done = context.registry.finish(version)
        if done.state == "refused":
            raise InvalidAdapter(done.reason)
        return done, True

    try:
        await publish(context, work)
    except (ProofUnavailable, RegistryUnavailable) as error:
        log.warning("adapter %s can't be checked now: %s", version.ref, error)
        return False
    except AdapterError as error:
        log.info("adapter %s was refused: %s", version.ref, error)
    except Exception:
        log.exception("the check of adapter %s failed", version.ref)
    return True
