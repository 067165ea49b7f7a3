"""`/v1/keys`: API keys of the caller's tenant, and of every tenant for operators."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from adapters.errors import TenantNotFound
from adapters.registry.keys import MAX_PAGE
from adapters.registry.records import Scope
from server.access.shown import key_object
from server.api.auth import CurrentCaller, CurrentPrincipal, insufficient_scope
from server.api.body import read_json
from server.api.context import Context, OpenContext
from server.api.errors import APIError
from server.api.schemas import Strict

router = APIRouter()
MAX_SECONDS = 100 * 366 * 86_400
NOTICE = "This is the first API key: from now on every request needs one."
_ACROSS: tuple[Scope, ...] = ("operator", "metrics")


class KeyRequest(Strict):
    """`name` is for people; `tenant` is the caller's own if left out; `expires_in` seconds, or never."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")
    scopes: list[Scope] = Field(min_length=1, max_length=16)
    tenant: str | None = Field(None, max_length=100)
    expires_in: int | None = Field(None, ge=1, le=MAX_SECONDS)


@router.get("/v1/keys")
async def list_keys(
    context: Context,
    caller: CurrentCaller,
    tenant: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    after: Annotated[str | None, Query(max_length=100)] = None,
) -> dict[str, object]:
    """Keys, oldest first, without their secrets; an operator sees all tenants' unless `tenant` names one."""
    if tenant is not None:
        if not caller.operator and tenant != caller.tenant:
            raise TenantNotFound(f"no tenant {tenant!r}")
        context.registry.tenants.get(tenant)
    elif not caller.operator:
        tenant = caller.tenant
    # One more than asked for tells whether there are more.
    keys = await run_in_threadpool(
        lambda: context.registry.keys.list(tenant, after=after, limit=limit + 1, caller=caller)
    )
    page = keys[:limit]
    return {
        "object": "list",
        "data": [key_object(key) for key in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(keys) > limit,
    }


@router.post("/v1/keys")
async def create_key(request: Request, context: OpenContext, principal: CurrentPrincipal) -> Response:
    """Make a key. The answer has its `secret`, which is shown this one time."""
    body = await read_json(request, KeyRequest)
    caller, first = principal.caller, not context.access.required
    for scope in _ACROSS:
        if scope in body.scopes and not caller.operator:
            raise insufficient_scope("operator", f"which it takes to give `{scope}`")
    if first and "operator" not in body.scopes:
        message = (
            "scopes: the first key must have the scope `operator`; it turns keys on, and nobody could make "
            "another one"
        )
        raise APIError(400, message, param="scopes", code="first_key_not_operator")
    expires = None if body.expires_in is None else time.time() + body.expires_in
    tenant = caller.tenant if body.tenant is None else body.tenant
    key, secret = await run_in_threadpool(
        lambda: context.registry.keys.create(tenant, body.name, body.scopes, expires, caller)
    )
    content = {**key_object(key), "secret": secret, **({"notice": NOTICE} if first else {})}
    return JSONResponse(content, 201, headers={"cache-control": "no-store"})


@router.get("/v1/keys/{id}")
async def get_key(context: Context, caller: CurrentCaller, id: str) -> dict[str, object]:
    """One key without its secret, valid or not."""
    return key_object(await run_in_threadpool(lambda: context.registry.keys.get(id, caller)))


@router.delete("/v1/keys/{id}")
async def revoke_key(context: OpenContext, caller: CurrentCaller, id: str) -> dict[str, object]:
    """Revoke a key. It stays in the list; to revoke it twice changes nothing."""
    return key_object(await run_in_threadpool(lambda: context.registry.keys.revoke(id, caller)))
