"""`GET /v1/audit`: who changed what, for the admins of a tenant, and of all for operators."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from server.api.auth import CurrentCaller
from server.api.context import Context
from server.api.schemas import INT64

router = APIRouter()
MAX_PAGE = 1000


@router.get("/v1/audit")
async def list_audit(
    context: Context,
    caller: CurrentCaller,
    after: Annotated[int, Query(ge=0, lt=INT64)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    subject: Annotated[str | None, Query(pattern=r"^[!-~]{1,256}$")] = None,
) -> dict[str, object]:
    """The changes after the one with the id `after`, oldest first.

    `subject`: only those of a key, a tenant, a version, an alias, or an adapter with its versions and
    aliases.
    """
    entries = await run_in_threadpool(
        lambda: context.registry.audit(caller, after=after, limit=limit + 1, subject=subject)
    )
    page = entries[:limit]
    return {
        "object": "list",
        "data": [{**asdict(entry), "object": "audit.entry"} for entry in page],
        "last_id": page[-1].id if page else None,
        "has_more": len(entries) > limit,
    }
