"""`/v1/adapters/{name}/aliases`: names for versions, moved by compare-and-set, with their history."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from adapters.errors import AdapterNotFound
from adapters.registry.records import Alias, Caller, Target
from server.api.auth import CurrentCaller
from server.api.body import read_json
from server.api.context import Context, OpenContext, ServerContext
from server.api.errors import APIError
from server.api.objects import Object, alias_object, canonical, etag, listed
from server.api.schemas import Strict

router = APIRouter()
MAX_TARGETS = 16
MAX_NUMBER = 999_999_999
MAX_REVISION = 2**62
Revision = Annotated[int, Field(ge=0, le=MAX_REVISION)]


class TargetFields(Strict):
    """One version, and what share of the requests it gets."""

    version: int = Field(ge=1, le=MAX_NUMBER)
    percent: int = Field(100, ge=1, le=100)


class AliasRequest(Strict):
    """`expected_revision`: change it only if this is its revision; 0: only if there is no such alias."""

    targets: list[TargetFields] = Field(min_length=1, max_length=MAX_TARGETS)
    shadow: int | None = Field(None, ge=1, le=MAX_NUMBER)
    expected_revision: Revision | None = None


@router.get("/v1/adapters/{name:path}/aliases/{alias}/history")
async def get_history(context: Context, caller: CurrentCaller, name: str, alias: str) -> Object:
    """What an alias has meant, newest first; without targets: it was removed."""
    history = await run_in_threadpool(context.registry.alias_history, name, alias, caller)
    return listed(alias_object(caller, alias) for alias in history)


@router.get("/v1/adapters/{name:path}/aliases")
async def list_aliases(context: Context, caller: CurrentCaller, name: str) -> Object:
    """All aliases of one adapter; there is always `default`."""
    aliases = context.registry.aliases(name, caller)
    if not aliases:
        raise AdapterNotFound(f"no adapter {name[:100]!r}; GET /v1/models lists what there is")
    return listed(alias_object(caller, alias) for alias in aliases)


@router.put("/v1/adapters/{name:path}/aliases/{alias}")
async def put_alias(
    request: Request, context: OpenContext, caller: CurrentCaller, name: str, alias: str
) -> Response:
    """Make or move an alias. Requests that run stay where they are."""
    body = await read_json(request, AliasRequest)
    expected = expected_revision(request, body.expected_revision)
    targets = tuple(Target(target.version, target.percent) for target in body.targets)
    return await move(
        context,
        caller,
        lambda: context.registry.set_alias(
            name, alias, targets, shadow=body.shadow, expected=expected, caller=caller
        ),
    )


@router.delete("/v1/adapters/{name:path}/aliases/{alias}")
async def delete_alias(
    request: Request,
    context: OpenContext,
    caller: CurrentCaller,
    name: str,
    alias: str,
    revision: Annotated[int | None, Query(alias="expected_revision", ge=0, le=MAX_REVISION)] = None,
) -> Object:
    """Remove an alias; the versions stay."""
    expected = expected_revision(request, revision)
    await run_in_threadpool(
        lambda: context.registry.remove_alias(name, alias, expected=expected, caller=caller)
    )
    return {"id": f"{canonical(name, caller)}@{alias}", "object": "adapter.alias.deleted", "deleted": True}


async def move(context: ServerContext, caller: Caller, change: Callable[[], Alias]) -> Response:
    """Answer with the alias after `change`, and begin to load what it means now."""
    alias = await run_in_threadpool(change)
    meant = {alias.shadow, *(target.version for target in alias.targets)}
    for version in context.registry.versions(f"{alias.tenant}/{alias.name}", caller):
        if version.version in meant:
            context.engine.prefetch(version.digest)
    return JSONResponse(alias_object(caller, alias), headers=etag(alias))


def expected_revision(request: Request, stated: int | None) -> int | None:
    """The revision that a change expects, from its body or from `If-Match`."""
    header = request.headers.get("if-match")
    if header is None:
        return stated
    if stated is not None:
        raise APIError(400, "Send either If-Match or expected_revision.", param="expected_revision")
    match = re.fullmatch(r'"([0-9]{1,18})"', header.strip())
    if match is None:
        raise APIError(400, 'If-Match: must be one revision in quotes, such as "7"', param="If-Match")
    return int(match[1])
