"""What happens to versions once they are published: promoted, rolled back, tried, deprecated, kept loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from adapters.registry.names import DEFAULT_ALIAS
from adapters.registry.records import Alias, Caller, Desired
from server.api.aliases import Revision, expected_revision, move
from server.api.auth import CurrentCaller
from server.api.body import read_json
from server.api.context import OpenContext, ServerContext
from server.api.objects import Object, adapter_object
from server.api.schemas import Strict

router = APIRouter()
MAX_REASON = 500


class MoveRequest(Strict):
    """Which alias to move, and as `AliasRequest` has it, from which revision."""

    alias: str = Field(DEFAULT_ALIAS, min_length=1, max_length=63)
    expected_revision: Revision | None = None


class CanaryRequest(MoveRequest):
    """`percent` of the alias's requests go to the version; what it meant before shares the rest."""

    percent: int = Field(ge=0, le=100)


class DeprecateRequest(Strict):
    """`reason`: what users are told; null takes the deprecation back."""

    reason: str | None = Field(max_length=MAX_REASON)


@router.post("/v1/adapters/{ref:path}/promote")
async def promote(request: Request, context: OpenContext, caller: CurrentCaller, ref: str) -> Response:
    """Make an alias mean one version, alone."""
    body = await _read_optional(request, MoveRequest)
    return await _moved(request, context, caller, body, partial(context.registry.promote, ref, body.alias))


@router.post("/v1/adapters/{name:path}/rollback")
async def rollback(request: Request, context: OpenContext, caller: CurrentCaller, name: str) -> Response:
    """Make an alias mean what it did before its last change."""
    body = await _read_optional(request, MoveRequest)
    return await _moved(request, context, caller, body, partial(context.registry.rollback, name, body.alias))


@router.post("/v1/adapters/{ref:path}/canary")
async def canary(request: Request, context: OpenContext, caller: CurrentCaller, ref: str) -> Response:
    """Give one version a share of an alias's requests."""
    body = await read_json(request, CanaryRequest)
    return await _moved(
        request, context, caller, body, partial(context.registry.canary, ref, body.percent, body.alias)
    )


@router.post("/v1/adapters/{ref:path}/deprecate")
async def deprecate(request: Request, context: OpenContext, caller: CurrentCaller, ref: str) -> Object:
    """Mark a version as one to move away from; it answers as before."""
    body = await read_json(request, DeprecateRequest)
    version = await run_in_threadpool(lambda: context.registry.deprecate(ref, body.reason, caller=caller))
    return adapter_object(context, caller, version)


@router.post("/v1/adapters/{ref:path}/preload")
async def preload(context: OpenContext, caller: CurrentCaller, ref: str) -> Object:
    """Load a version now and at each start."""
    return await _want(context, caller, ref, "loaded")


@router.post("/v1/adapters/{ref:path}/pin")
async def pin(context: OpenContext, caller: CurrentCaller, ref: str) -> Object:
    """Load a version now and at each start, and never evict it."""
    return await _want(context, caller, ref, "pinned")


@router.post("/v1/adapters/{ref:path}/unpin")
async def unpin(context: OpenContext, caller: CurrentCaller, ref: str) -> Object:
    """Take `pin` or `preload` back; what is loaded stays until there is need of room."""
    return await _want(context, caller, ref, "")


async def _moved(
    request: Request,
    context: ServerContext,
    caller: Caller,
    body: MoveRequest,
    change: Callable[..., Alias],
) -> Response:
    expected = expected_revision(request, body.expected_revision)
    return await move(context, caller, lambda: change(expected=expected, caller=caller))


async def _want(context: ServerContext, caller: Caller, ref: str, desired: Desired) -> Object:
    version = await run_in_threadpool(lambda: context.registry.want(ref, desired, caller=caller))
    if desired:
        context.engine.prefetch(version.digest)
    return adapter_object(context, caller, version)


Body = TypeVar("Body", bound=Strict)


async def _read_optional(request: Request, model: type[Body]) -> Body:
    """The body, which may be left out where every field has a default."""
    return await read_json(request, model) if await request.body() else model()
