"""`/v1/adapters`: publish, list, show and delete adapters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from adapters.errors import InvalidName
from adapters.registry.names import DEFAULT_TENANT, parse_ref
from adapters.registry.records import LIVE, AdapterVersion, Alias, Caller, State
from server.api.auth import CurrentCaller
from server.api.context import MAX_TENANT_UPLOADS, MAX_UPLOADS, Context, OpenContext, ServerContext
from server.api.errors import busy, from_adapter_error
from server.api.objects import Object, adapter_object, aliases_of, version_object
from server.api.publishing import check_later, publish
from server.api.upload import receive_upload

router = APIRouter()
MAX_PAGE = 1000
MAX_DRAIN_SECONDS = 300
_DRAIN_POLL_SECONDS = 0.05


@router.post("/v1/adapters")
async def create_adapter(
    request: Request, context: OpenContext, caller: CurrentCaller, wait: bool = True
) -> Response:
    """Check and store an adapter from multipart parts: `name`, `config`, `weights` and others.

    201 for a new version; 200 when the newest version of this name has exactly these files already. With
    `wait=false` 202 as soon as the files are stored, and the version is checked afterwards; 200 only if the
    client says by `digest` that it is the newest version again.
    """
    with upload_place(context, caller.tenant):
        async with receive_upload(request, context.settings) as upload:
            known = None if wait else upload.known(context.registry, caller)
            if known is not None:
                version, status = known, 200
            elif wait:
                version, created = await publish(context, lambda: upload.publish(context.registry, caller))
                status = 201 if created else 200
            else:
                version, status = await run_in_threadpool(upload.begin, context.registry, caller), 202
                check_later(context, version)
    headers = {"x-adapter": version.ref}
    if version.digest:
        headers["x-adapter-digest"] = version.digest
    return JSONResponse(adapter_object(context, caller, version), status, headers)


@contextmanager
def upload_place(context: ServerContext, tenant: str) -> Iterator[None]:
    """One of the places for uploads, for the block; a 429 if there is none."""
    for running, most, whose in (
        (context.uploads.total(), MAX_UPLOADS, ""),
        (context.uploads[tenant], MAX_TENANT_UPLOADS, " of this tenant"),
    ):
        if running >= most:
            message = f"{most} uploads{whose} are running already; try again in a moment."
            raise busy(message, "too_many_uploads", 5)
    context.uploads[tenant] += 1
    try:
        yield
    finally:
        context.uploads[tenant] -= 1
        if not context.uploads[tenant]:
            del context.uploads[tenant]


@router.get("/v1/adapters")
def list_adapters(
    context: Context,
    caller: CurrentCaller,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    after: Annotated[str | None, Query(max_length=256)] = None,
    name: Annotated[str | None, Query(max_length=256)] = None,
    state: State | None = None,
    digest: Annotated[str | None, Query(max_length=64)] = None,
    all: bool = False,
) -> Object:
    """Versions by tenant, name and number; `after` is the last id of the page before.

    Live ones, or with `all` or `state` also what is being checked, was refused or deleted. A version that was
    deleted since still marks the place, so pages stay whole while adapters come and go.
    In a thread: there may be a hundred thousand of them.
    """
    everything = all or state not in (None, *LIVE)
    versions = context.registry.history(caller) if everything else context.registry.list(caller)
    if name is not None:
        tenant, bare = _named(name, caller)
        versions = [version for version in versions if (version.tenant, version.name) == (tenant, bare)]
    if state is not None:
        versions = [version for version in versions if version.state == state]
    if digest is not None:
        versions = [version for version in versions if version.digest == digest]
    if after is not None:
        place = _place(after)
        versions = [version for version in versions if _order(version) > place]
    page = versions[:limit]
    return {
        "object": "list",
        "data": list(_objects(context, caller, page)),
        "first_id": page[0].ref_for(caller.tenant) if page else None,
        "last_id": page[-1].ref_for(caller.tenant) if page else None,
        "has_more": len(versions) > limit,
    }


@router.get("/v1/adapters/{ref:path}")
async def get_adapter(context: Context, caller: CurrentCaller, ref: str) -> Object:
    """The version that a reference means now, in whatever state; with it the live ones of its name."""
    version = await run_in_threadpool(context.registry.find, ref, caller)
    live = context.registry.versions(f"{version.tenant}/{version.name}", caller)
    return {
        **adapter_object(context, caller, version),
        "versions": [other.ref_for(caller.tenant) for other in live],
    }


@router.delete("/v1/adapters/{ref:path}")
async def delete_adapter(
    request: Request,
    context: OpenContext,
    caller: CurrentCaller,
    ref: str,
    force: bool = False,
    drain_seconds: Annotated[float, Query(ge=0, le=MAX_DRAIN_SECONDS)] = 0,
) -> Object:
    """Delete one version, or all versions of a name. Requests that run on them finish on them.

    With `drain_seconds` the answer waits for these as long as that; `drained` says whether all are over.
    """

    def delete() -> Sequence[AdapterVersion]:
        return context.registry.delete(ref, caller=caller, force=force)

    deleted = await run_in_threadpool(delete)
    drained = await _drained(request, context, {version.digest for version in deleted}, drain_seconds)
    refs = [version.ref_for(caller.tenant) for version in deleted]
    said = refs[0] if "@" in ref else refs[0].partition("@")[0]
    return {"id": said, "object": "adapter.deleted", "deleted": True, "versions": refs, "drained": drained}


async def _drained(request: Request, context: ServerContext, digests: set[str], seconds: float) -> bool:
    """Whether no request of this server runs on any of `digests`, waiting up to `seconds` for that."""
    deadline = time.monotonic() + seconds
    while held := any(context.registry.holders(digest) for digest in digests):
        if time.monotonic() >= deadline or context.draining or await request.is_disconnected():
            break
        await asyncio.sleep(_DRAIN_POLL_SECONDS)
    return not held


def _objects(context: ServerContext, caller: Caller, versions: Iterable[AdapterVersion]) -> Iterable[Object]:
    """Neighbours have the same name, mostly: its aliases are looked up once."""
    known: dict[str, tuple[Alias, ...]] = {}
    for version in versions:
        live = version.state in LIVE
        if live and version.full_name not in known:
            known = {version.full_name: aliases_of(context, caller, version)}
        yield version_object(context, caller, version, known[version.full_name] if live else ())


def _named(name: str, caller: Caller) -> tuple[str, str]:
    """Tenant and name of the query's `name`."""
    try:
        ref = parse_ref(name)
        if ref.version is not None or ref.alias is not None:
            raise InvalidName(f"{name!r} is not a name without version and alias")
    except InvalidName as error:
        raise from_adapter_error(error, param="name") from None
    return ref.tenant or caller.tenant, ref.name


def _place(after: str) -> tuple[str, str, int]:
    """Where the version with this id stands in lists. A bare name is the default tenant's."""
    try:
        ref = parse_ref(after)
    except InvalidName as error:
        raise from_adapter_error(error, param="after") from None
    return ref.tenant or DEFAULT_TENANT, ref.name, ref.version or 0


def _order(version: AdapterVersion) -> tuple[str, str, int]:
    return version.tenant, version.name, version.version
