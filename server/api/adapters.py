"""`/v1/adapters`: publish, list, show and delete adapters."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from adapters.errors import InvalidName
from adapters.registry.lineage import quantization_warning
from adapters.registry.names import parse_ref
from adapters.registry.records import AdapterVersion
from server.api.context import MAX_UPLOADS, Context, OpenContext, ServerContext
from server.api.errors import busy, from_adapter_error
from server.api.publishing import publish
from server.api.upload import receive_upload

router = APIRouter()
MAX_PAGE = 1000


@router.post("/v1/adapters")
async def create_adapter(request: Request, context: OpenContext) -> Response:
    """Check and store an adapter from multipart parts: `name`, `config`, `weights` and others.

    201 for a new version; 200 when the newest version of this name has exactly these files already.
    """
    if context.uploads >= MAX_UPLOADS:
        message = f"{MAX_UPLOADS} uploads are running already; try again in a moment."
        raise busy(message, "too_many_uploads", 5)
    context.uploads += 1
    try:
        async with receive_upload(request, context.settings) as upload:
            version, created = await publish(
                context,
                lambda: context.registry.publish(
                    upload.name,
                    upload.config,
                    upload.weights,
                    source="upload",
                    labels=upload.labels,
                    quantization=upload.quantization,
                ),
            )
    finally:
        context.uploads -= 1
    headers = {"x-adapter": version.ref, "x-adapter-digest": version.digest}
    return JSONResponse(adapter_object(context, version), 201 if created else 200, headers)


@router.get("/v1/adapters")
async def list_adapters(
    context: Context,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    after: Annotated[str | None, Query(max_length=256)] = None,
) -> dict[str, object]:
    """Every live version, by name and version; `after` is the last id of the page before.

    A version that was deleted since still marks the place, so pages stay whole while adapters come and go.
    """
    versions = context.registry.list()
    if after is not None:
        try:
            mark = parse_ref(after)
        except InvalidName as error:
            raise from_adapter_error(error, param="after") from None
        versions = [
            version
            for version in versions
            if (version.name, version.version) > (mark.name, mark.version or 0)
        ]
    page = versions[:limit]
    return {
        "object": "list",
        "data": [adapter_object(context, version) for version in page],
        "first_id": page[0].ref if page else None,
        "last_id": page[-1].ref if page else None,
        "has_more": len(versions) > limit,
    }


@router.get("/v1/adapters/{ref:path}")
async def get_adapter(context: Context, ref: str) -> dict[str, object]:
    """The newest version of a name, or exactly `name@version`; with it the versions that are live."""
    version = context.registry.resolve(ref)
    live = [other.ref for other in context.registry.versions(version.name)]
    return {**adapter_object(context, version), "versions": live}


@router.delete("/v1/adapters/{ref:path}")
async def delete_adapter(context: OpenContext, ref: str) -> dict[str, object]:
    """Delete one version, or all versions of a name. Requests that run on them finish on them."""
    deleted = await run_in_threadpool(context.registry.delete, ref)
    refs = [version.ref for version in deleted]
    return {"id": ref, "object": "adapter.deleted", "deleted": True, "versions": refs}


def adapter_object(context: ServerContext, version: AdapterVersion) -> dict[str, object]:
    """One version as the API shows it; `state` is the fastest tier that has it now."""
    warning = quantization_warning(context.base, version.trained_on_quantization)
    return {
        "id": version.ref,
        "object": "adapter",
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "base": context.base.name,
        "base_digest": version.base_digest,
        "created": int(version.created),
        "size": version.size,
        "rank": version.rank,
        "parameters": version.parameters,
        "target_modules": list(version.target_modules),
        "variant": version.variant,
        "task": version.task,
        "labels": list(version.labels),
        "source": version.source,
        "trained_on_quantization": version.trained_on_quantization,
        "proof": asdict(version.proof),
        "warnings": [] if warning is None else [warning],
        "state": context.engine.residency(version.digest),
    }
