"""`/v1/fine_tuning/jobs`: created, listed, cancelled, paused and resumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from adapters.registry.records import Caller
from server.api.auth import CurrentCaller
from server.api.body import read_json
from server.api.context import OpenContext
from server.api.fine_tuning.asked import as_request
from server.api.fine_tuning.objects import Object, job_object, paged
from server.api.fine_tuning.schemas import MAX_KEY, MAX_PAIRS, MAX_VALUE, JobFields
from server.api.fine_tuning.service import CurrentService
from server.api.schemas import invalid
from server.jobs.records import Job, new_id

router = APIRouter()
MAX_PAGE = 1000
_BEGIN, _END = "metadata[", "]"


@router.post("/v1/fine_tuning/jobs")
async def create_job(
    request: Request, context: OpenContext, caller: CurrentCaller, service: CurrentService
) -> Object:
    """Have an adapter trained; its files are looked at first, and then it waits for its turn."""
    fields = await read_json(request, JobFields)
    job_id = new_id("ftjob")
    asked = await run_in_threadpool(as_request, context, caller, fields, job_id)
    return job_object(await run_in_threadpool(service.jobs.create, caller, asked, job_id))


@router.get("/v1/fine_tuning/jobs")
async def list_jobs(
    request: Request,
    caller: CurrentCaller,
    service: CurrentService,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    after: Annotated[str | None, Query(max_length=100)] = None,
    metadata: Annotated[str | None, Query(pattern="^null$")] = None,
) -> Object:
    """Jobs, newest first; `metadata[key]=value` picks those that have it, `metadata=null` those without."""
    labels = _labels(request)
    found = await run_in_threadpool(
        lambda: service.jobs.list(
            caller, after=after, limit=limit + 1, metadata=labels, no_metadata=metadata is not None
        )
    )
    return paged([job_object(job) for job in found], limit)


@router.get("/v1/fine_tuning/jobs/{job_id}")
async def get_job(caller: CurrentCaller, service: CurrentService, job_id: str) -> Object:
    """One job as it is now."""
    return job_object(await run_in_threadpool(service.jobs.get, caller, job_id))


@router.post("/v1/fine_tuning/jobs/{job_id}/cancel")
async def cancel_job(
    context: OpenContext, caller: CurrentCaller, service: CurrentService, job_id: str
) -> Object:
    """End it for good; its checkpoints stay."""
    return await _changed(service.jobs.cancel, caller, job_id)


@router.post("/v1/fine_tuning/jobs/{job_id}/pause")
async def pause_job(
    context: OpenContext, caller: CurrentCaller, service: CurrentService, job_id: str
) -> Object:
    """Stop it where it is."""
    return await _changed(service.jobs.pause, caller, job_id)


@router.post("/v1/fine_tuning/jobs/{job_id}/resume")
async def resume_job(
    context: OpenContext, caller: CurrentCaller, service: CurrentService, job_id: str
) -> Object:
    """Have it go on from there."""
    return await _changed(service.jobs.resume, caller, job_id)


async def _changed(change: Callable[[Caller, str], Job], caller: Caller, job_id: str) -> Object:
    return job_object(await run_in_threadpool(change, caller, job_id))


def _labels(request: Request) -> dict[str, str]:
    """The query's `metadata[key]=value`."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name.startswith(_BEGIN) and name.endswith(_END):
            key = name[len(_BEGIN) : -len(_END)]
            if not 0 < len(key) <= MAX_KEY or len(value) > MAX_VALUE or "\0" in key + value:
                raise invalid(
                    "metadata", "keys have 1 to 64 characters and values up to 512, none of them NUL"
                )
            found[key] = value
    if len(found) > MAX_PAIRS:
        raise invalid("metadata", f"at most {MAX_PAIRS} pairs")
    return found
