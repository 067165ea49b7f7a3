"""Copies of requests for an alias's shadow version: nobody sees their answers, and nobody waits for them.

A copy is one more answer to the first prompt. It begins only while nothing waits for the engine, and ends at
once when the client goes away. No quota counts it, but it runs in its tenant's own share of the batch.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

from server.api.context import ServerContext
from server.api.lease import Lease
from server.engine.request import GenerationRequest, QueueFull

log = logging.getLogger(__name__)
MOST = 4
"""Copies at one time; a request that comes meanwhile is not copied."""
SECONDS = 120.0
"""A copy that takes longer is given up."""

Tokens = tuple[int, ...]


class Shadow:
    """One copy that runs. Tell it with `answered` how the request itself ended.

    `lease` is of the shadow version alone, and held while the copy runs.
    """

    def __init__(self, lease: Lease, request: GenerationRequest) -> None:
        self._lease, self._request = lease, request
        self._answer: asyncio.Future[Tokens | None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run())
        lease.context.shadows.add(task)
        task.add_done_callback(lease.context.shadows.discard)

    def answered(self, tokens: Tokens | None) -> None:
        """The request was answered with `tokens`, or with None not to its end. Safe to call twice."""
        if not self._answer.done():
            self._answer.set_result(tokens)

    async def _run(self) -> None:
        metrics, outcome = self._lease.context.metrics, "aborted"
        copying = asyncio.create_task(self._copy())
        try:
            either: set[asyncio.Future[Any]] = {copying, self._answer}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not copying.done() and self._answer.result() is None:
                return
            copied = await copying
            outcome = "success"
            answer = await self._answer
            if answer is not None and self._request.sampling.temperature == 0:
                metrics.shadow_answer(self._lease.label, copied == answer)
        except QueueFull:
            outcome = "skipped"
        except Exception as error:
            outcome = "error"
            log.warning("the copy of a request for %s failed: %s", self._lease.label, error)
        finally:
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
            metrics.shadow(self._lease.label, outcome)

    async def _copy(self) -> Tokens:
        tokens: list[int] = []
        self._lease.hold()
        try:
            async with asyncio.timeout(SECONDS):
                async for output in self._lease.context.engine.generate(self._request):
                    tokens += output.token_ids
        finally:
            self._lease.release()
        return tuple(tokens)


def start_shadow(lease: Lease, request: GenerationRequest) -> Shadow | None:
    """Copy `request`, which `lease` holds and which was submitted, if there is a shadow version and room."""
    if lease.shadow is None or request.sampling.max_tokens == 0:
        return None
    own = Lease(lease.context, (lease.shadow,), tenant=lease.tenant)
    if _is_busy(lease.context) or own.versions[0].task != lease.versions[0].task:
        lease.context.metrics.shadow(own.label, "skipped")
        return None
    copied = replace(
        request,
        request_id=f"shadow-{request.request_id}",
        sampling=replace(request.sampling, logprobs=None, prompt_logprobs=None),
        adapter=own.digest,
        invocation=own.invocation,
    )
    return Shadow(own, copied)


async def stop_shadows(context: ServerContext) -> None:
    """End all copies."""
    shadows = list(context.shadows)
    for shadow in shadows:
        shadow.cancel()
    await asyncio.gather(*shadows, return_exceptions=True)


def _is_busy(context: ServerContext) -> bool:
    return len(context.shadows) >= MOST or context.draining or context.engine.stats().waiting > 0
