"""What a job tells: its events, and the checkpoints that can be asked while it runs."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from server.api.auth import CurrentCaller
from server.api.fine_tuning.objects import Object, checkpoint_object, event_object, paged
from server.api.fine_tuning.service import CurrentService

router = APIRouter()
MAX_PAGE = 1000


@router.get("/v1/fine_tuning/jobs/{job_id}/events")
async def list_events(
    caller: CurrentCaller,
    service: CurrentService,
    job_id: str,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    after: Annotated[str | None, Query(max_length=100)] = None,
    order: Literal["asc", "desc"] = "desc",
) -> Object:
    """Events, the newest first unless `order` is `asc`; then `after` follows a job as it goes on."""
    found = await run_in_threadpool(
        lambda: service.jobs.events(caller, job_id, after=after, limit=limit + 1, oldest=order == "asc")
    )
    return paged([event_object(event) for event in found], limit)


@router.get("/v1/fine_tuning/jobs/{job_id}/checkpoints")
async def list_checkpoints(
    caller: CurrentCaller,
    service: CurrentService,
    job_id: str,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 10,
    after: Annotated[str | None, Query(max_length=100)] = None,
) -> Object:
    """Checkpoints, newest first."""
    found = await run_in_threadpool(
        lambda: service.jobs.checkpoints(caller, job_id, after=after, limit=limit + 1)
    )
    return paged([checkpoint_object(checkpoint) for checkpoint in found], limit)
