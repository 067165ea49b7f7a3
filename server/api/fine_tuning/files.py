"""`/v1/files`: training files come in to disk, are listed, read and deleted."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from server.api.adapters import upload_place
from server.api.auth import CurrentCaller
from server.api.context import OpenContext
from server.api.errors import APIError
from server.api.fine_tuning.objects import Object, file_object, paged
from server.api.fine_tuning.service import CurrentService
from server.api.multipart import Form, receive
from server.api.schemas import invalid
from server.api.upload import upload_folder
from server.jobs.files import is_full
from server.jobs.records import TrainingFile
from server.settings import MIB

router = APIRouter()
MAX_PAGE = 10_000
EXPIRES = (3600, 2_592_000)
"""Seconds: an hour to 30 days."""
FILE, PURPOSE = "file", "purpose"
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_WORD_BYTES = 64
_FRAME_BYTES = 16 * 1024
"""What a body has besides the file, at most."""
_BYTES = "application/octet-stream"
_RESULTS = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".md": "text/markdown",
    ".png": "image/png",
}
_WANTED = "the file as multipart/form-data with parts file and purpose"


@router.post("/v1/files")
async def create_file(
    request: Request, context: OpenContext, caller: CurrentCaller, service: CurrentService
) -> Object:
    """Store a file to train on from multipart parts: `file`, `purpose`, and `expires_after` for a while."""
    declared = request.headers.get("content-length", "")
    size = max(0, int(declared[:20]) - _FRAME_BYTES) if declared.isdecimal() else 0
    await run_in_threadpool(service.files.check_room, caller, size)
    most = context.settings.max_training_file_mb * MIB
    limits = {FILE: most, PURPOSE: _WORD_BYTES, ANCHOR: _WORD_BYTES, SECONDS: _WORD_BYTES}
    with upload_place(context, caller.tenant):
        try:
            async with upload_folder(context.settings.data_dir) as folder:
                content = folder / "content"
                form = await receive(request, limits, FILE, content, _WANTED)
                form.require((FILE, PURPOSE))
                _check_purpose(form)
                if not form.size:
                    raise invalid(FILE, "is empty")
                expires, name = _expires_after(form), form.filename or "unnamed"
                file = await run_in_threadpool(service.files.add, caller, content, name, expires)
        except OSError as error:
            if not is_full(error):
                raise
            message = "The server's disk is full; nothing was stored."
            raise APIError(507, message, kind="server_error", code="insufficient_storage") from error
    return file_object(file)


@router.get("/v1/files")
async def list_files(
    caller: CurrentCaller,
    service: CurrentService,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    after: Annotated[str | None, Query(max_length=100)] = None,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(pattern=r"^[a-z-]{1,32}$")] = None,
) -> Object:
    """Files by age, the newest first unless `order` is `asc`; `after` is the last id of the page before."""
    found = await run_in_threadpool(
        lambda: service.files.list(
            caller, after=after, limit=limit + 1, purpose=purpose, oldest=order == "asc"
        )
    )
    return paged([file_object(file) for file in found], limit)


@router.get("/v1/files/{file_id}")
async def get_file(caller: CurrentCaller, service: CurrentService, file_id: str) -> Object:
    """What is known of one file."""
    return file_object(await run_in_threadpool(service.files.get, caller, file_id))


@router.get("/v1/files/{file_id}/content")
async def get_content(caller: CurrentCaller, service: CurrentService, file_id: str) -> FileResponse:
    """The bytes that were sent, or that a job wrote; parts of them by `Range`."""
    file = await run_in_threadpool(service.files.get, caller, file_id)
    path = await run_in_threadpool(service.files.path, file.id)
    headers = {"x-sha256": file.sha256, "etag": f'"{file.sha256}"'}
    return FileResponse(path, headers=headers, media_type=_media_type(file))


@router.delete("/v1/files/{file_id}")
async def delete_file(
    context: OpenContext, caller: CurrentCaller, service: CurrentService, file_id: str
) -> Object:
    """Delete one file; a 409 while a job that is not over needs it."""
    file = await run_in_threadpool(service.files.delete, caller, file_id)
    return {"id": file.id, "object": "file", "deleted": True}


def _media_type(file: TrainingFile) -> str:
    """Of what a job wrote by its name; nobody else's word is taken for what is in a file."""
    if file.purpose != "fine-tune-results":
        return _BYTES
    return _RESULTS.get(PurePath(file.filename).suffix, _BYTES)


def _check_purpose(form: Form) -> None:
    if form.word(PURPOSE) != "fine-tune":
        raise invalid(PURPOSE, f"this server takes files to fine-tune with only, not {form.word(PURPOSE)!r}")


def _expires_after(form: Form) -> float | None:
    anchor, text = form.word(ANCHOR), form.word(SECONDS)
    if anchor is None and text is None:
        return None
    if anchor != "created_at":
        raise invalid("expires_after.anchor", "must be created_at")
    seconds = int(text) if text is not None and text.isascii() and text.isdecimal() else 0
    if not EXPIRES[0] <= seconds <= EXPIRES[1]:
        raise invalid("expires_after.seconds", f"must be from {EXPIRES[0]} to {EXPIRES[1]}")
    return float(seconds)
