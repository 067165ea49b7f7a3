"""`/v1/adapters/{name}/shares`: which other tenants may use an adapter."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from adapters.registry.records import Caller
from server.api.auth import CurrentCaller
from server.api.context import Context, OpenContext, ServerContext
from server.api.objects import Object, canonical

router = APIRouter()


@router.get("/v1/adapters/{name:path}/shares")
async def list_shares(context: Context, caller: CurrentCaller, name: str) -> Object:
    """The tenants that an adapter is shared with; `*` is everybody."""
    return _shares(context, caller, name)


@router.put("/v1/adapters/{name:path}/shares/{tenant}")
async def share(context: OpenContext, caller: CurrentCaller, name: str, tenant: str) -> Object:
    """Let a tenant use all versions of an adapter, or everybody with `*`."""
    await run_in_threadpool(lambda: context.registry.share(name, tenant, caller=caller))
    return _shares(context, caller, name)


@router.delete("/v1/adapters/{name:path}/shares/{tenant}")
async def unshare(context: OpenContext, caller: CurrentCaller, name: str, tenant: str) -> Object:
    """Take that back. Requests that run finish."""
    await run_in_threadpool(lambda: context.registry.unshare(name, tenant, caller=caller))
    return _shares(context, caller, name)


def _shares(context: ServerContext, caller: Caller, name: str) -> Object:
    tenants = context.registry.shares(name, caller)
    return {"object": "adapter.shares", "name": canonical(name, caller), "tenants": list(tenants)}
