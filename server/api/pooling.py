"""The way of one request that generates nothing: submit its inputs, wait for all of them, render."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence

import anyio.to_thread
from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from adapters.errors import AdapterError
from server.api.admission import admit
from server.api.errors import APIError
from server.api.generation import unless_gone
from server.api.lease import Lease
from server.api.prompts import Prompt
from server.api.streaming import Body
from server.engine.request import (
    Pooling,
    PoolingOutput,
    PoolingRequest,
    PoolingTask,
    QueueFull,
)
from server.metrics import RequestTimer

SMALL = 64 * 1024
"""Answers of up to this many numbers are rendered in place: the thread would cost more than the work."""

Render = Callable[[Sequence[PoolingOutput]], list[Body]]
"""From the engine's answers, in the order of the inputs, to the entries of `data`."""


async def respond(
    request: Request,
    lease: Lease,
    prompts: Sequence[Prompt],
    task: PoolingTask,
    render: Render,
    *,
    pooling: Pooling | None = None,
) -> Response:
    """Run `prompts` through the engine and send what `render` makes of them. Gives the lease back."""
    answer_id = f"{task}-{uuid.uuid4().hex}"
    # Encoders are commonly trained to say in their first token what the text is, decoders in the last.
    decodes = lease.context.base.kind == "decoder"
    requests = [
        PoolingRequest(
            request_id=f"{answer_id}-{index}",
            prompt=prompt.token_ids,
            task=task,
            pooling=pooling or ("last" if decodes else "cls"),
            adapter=lease.digest,
            invocation=lease.invocation,
            scope=lease.scope,
            tenant=lease.tenant,
        )
        for index, prompt in enumerate(prompts)
    ]

    async def answer() -> bytes:
        outputs = await _pool(lease, requests, places)
        numbers = sum(len(vector) for output in outputs for vector in output.vectors)
        if numbers <= SMALL:
            return _body(lease, answer_id, prompts, render(outputs))
        return await anyio.to_thread.run_sync(lambda: _body(lease, answer_id, prompts, render(outputs)))

    # A long list is not refused: only so much of it runs at a time as its tenant may have in flight.
    context, tenant = lease.context, lease.tenant
    places = context.budgets.places(tenant, min(len(requests), context.settings.max_running))
    admission = admit(context, tenant, places, sum(len(prompt.token_ids) for prompt in prompts))
    timer = RequestTimer(lease.context.metrics, lease.label, requests)
    try:
        content = await unless_gone(request, answer())
        timer.pooled(task)
    except (APIError, QueueFull):
        timer.outcome = "rejected"
        raise
    except ClientDisconnect:
        raise
    except AdapterError as error:
        timer.outcome = "error"
        raise lease.failure(error) from error
    except Exception:
        timer.outcome = "error"
        raise
    finally:
        admission.close()
        lease.release()
        timer.close()
    headers = {**lease.headers, "x-request-id": answer_id}
    return Response(content, headers=headers, media_type="application/json")


async def _pool(lease: Lease, requests: Sequence[PoolingRequest], places: int) -> list[PoolingOutput]:
    """All answers, or the first error; `places` at a time."""
    slots = asyncio.Semaphore(places)

    async def one(request: PoolingRequest) -> PoolingOutput:
        async with slots:
            return await lease.context.engine.pool(request)

    tasks = [asyncio.create_task(one(request)) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _body(lease: Lease, answer_id: str, prompts: Sequence[Prompt], data: list[Body]) -> bytes:
    tokens = sum(len(prompt.token_ids) for prompt in prompts)
    return to_json(
        {
            "id": answer_id,
            "object": "list",
            "created": int(time.time()),
            "model": lease.model,
            "data": data,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )
