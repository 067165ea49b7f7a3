"""`GET /v1/adapters/{ref}/merged`: the base with one adapter merged, as a tar stream of a model folder.

It is made by `multilora merge` in a process of its own: that gives its memory back, can be ended when the
client leaves, and takes the processor only when the server does not want it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from adapters.registry.records import AdapterVersion
from server.api.auth import CurrentCaller
from server.api.context import OpenContext, ServerContext
from server.api.errors import APIError, busy
from server.child import child_environment
from server.engine.loading import resolve_folder
from server.settings import MIB
from training.base import MODEL_DIR

router = APIRouter()
FOLDER = "merged"
MAX_SECONDS = 1800
_POLL_SECONDS = 0.1
_NICE = 19


@dataclass(frozen=True, slots=True)
class _Entry:
    """One file of the archive. `head` is what precedes its content."""

    path: Path
    size: int
    head: bytes

    @property
    def padding(self) -> int:
        return -self.size % tarfile.BLOCKSIZE


@router.get("/v1/adapters/{ref:path}/merged")
async def get_merged(request: Request, context: OpenContext, caller: CurrentCaller, ref: str) -> Response:
    """A model folder that any other tool can load; one is made at a time."""
    version = context.registry.resolve(ref, caller)
    if context.merging.locked():
        raise busy("Another model is being merged; try again when that is done.", "merge_running", 30)
    stack = AsyncExitStack()
    try:
        await stack.enter_async_context(context.merging)
        context.registry.hold(version.digest)
        stack.callback(context.registry.release, version.digest)
        folder = await run_in_threadpool(_make_folder, context.settings.data_dir / FOLDER)
        stack.push_async_callback(run_in_threadpool, shutil.rmtree, folder, ignore_errors=True)
        await _merge(request, context, version, folder)
        entries = await run_in_threadpool(_entries, folder / "model", version)
        return _Archive(entries, f"{version.name}-{version.version}-merged.tar", version, stack.aclose)
    except BaseException:
        await stack.aclose()
        raise


class _Archive(StreamingResponse):
    """Removes the files however the answer ends: sent, failed, or the client gone."""

    def __init__(
        self,
        entries: Sequence[_Entry],
        name: str,
        version: AdapterVersion,
        close: Callable[[], Awaitable[None]],
    ) -> None:
        length = sum(len(entry.head) + entry.size + entry.padding for entry in entries)
        headers = {
            "content-length": str(length + 2 * tarfile.BLOCKSIZE),
            "content-disposition": f'attachment; filename="{name}"',
            "x-adapter": version.ref,
            "x-adapter-digest": version.digest,
        }
        self._chunks, self._close = _chunks(entries), close
        super().__init__(self._chunks, headers=headers, media_type="application/x-tar")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._chunks.aclose()
            await self._close()


async def _merge(request: Request, context: ServerContext, version: AdapterVersion, folder: Path) -> None:
    """Have `folder`/model written."""
    base = await run_in_threadpool(resolve_folder, context.settings.model or str(MODEL_DIR))
    adapter = await run_in_threadpool(context.registry.folder, version.digest)
    await run_in_threadpool(_check_space, base, folder)
    log = folder / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command(base, adapter, folder / "model"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=child_environment(),
        )
    try:
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        await _ended(request, process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = log.read_text(errors="replace").splitlines()
        reasons = [line.removeprefix("multilora: ") for line in lines if line.startswith("multilora: ")]
        if process.returncode == 1 and reasons:
            raise APIError(400, reasons[-1], param="ref", code="not_mergeable")
        raise RuntimeError(f"the merge of {version.ref} ended with {process.returncode}: {lines[-1:]}")


def command(base: Path, adapter: Path, output: Path) -> list[str]:
    """What makes the merged model."""
    paths = ["--model", str(base), "--adapter", str(adapter), "--output", str(output)]
    return [sys.executable, "-m", "server.cli.main", "merge", *paths]


async def _ended(request: Request, process: asyncio.subprocess.Process) -> None:
    """Wait for the end of `process`, as long as there is somebody to wait for it."""
    deadline = time.monotonic() + MAX_SECONDS
    while process.returncode is None:
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _POLL_SECONDS)
        if await request.is_disconnected():
            raise ClientDisconnect
        if time.monotonic() > deadline:
            raise RuntimeError(f"the merge took longer than {MAX_SECONDS} seconds")


def remove_left_over(data_dir: Path) -> None:
    """Remove what was being made when the server was killed."""
    shutil.rmtree(data_dir / FOLDER, ignore_errors=True)


def _make_folder(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="model-", dir=parent))


def _check_space(base: Path, folder: Path) -> None:
    """The merged model is as large as its base; it may have an output head of its own besides."""
    needed = sum(path.stat().st_size for path in base.glob("*.safetensors")) * 3 // 2 + 64 * MIB
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = (
            f"The merged model takes about {needed // MIB} MiB on the server's disk; {free // MIB} are free."
        )
        raise APIError(507, message, kind="server_error", code="insufficient_storage")


def _entries(folder: Path, version: AdapterVersion) -> list[_Entry]:
    """All files of `folder`, in one folder of the archive."""
    entries = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        info = tarfile.TarInfo(f"{version.name}-{version.version}/{path.relative_to(folder)}")
        info.size, info.mtime = path.stat().st_size, int(version.created)
        entries.append(_Entry(path, info.size, info.tobuf()))
    return entries


async def _chunks(entries: Sequence[_Entry]) -> AsyncGenerator[bytes, None]:
    for entry in entries:
        yield entry.head
        with entry.path.open("rb") as file:
            while chunk := await run_in_threadpool(file.read, MIB):
                yield chunk
        yield bytes(entry.padding)
    yield bytes(2 * tarfile.BLOCKSIZE)
