"""`GET /v1/adapters/{ref}/files/{file}`: what PEFT saved of a version, and what else is known of it."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.labels import LABELS_FILE
from adapters.registry.lineage import LINEAGE_FILE, lineage_object
from adapters.registry.records import AdapterVersion
from server.api.auth import CurrentCaller
from server.api.context import Context, ServerContext
from server.api.errors import APIError
from server.api.objects import Object
from server.settings import MIB

router = APIRouter()
STORED = (CONFIG_FILE, WEIGHTS_FILE, LABELS_FILE)


@router.get("/v1/adapters/{ref:path}/files/{file}")
async def get_file(context: Context, caller: CurrentCaller, ref: str, file: str) -> Response:
    """One file of a version, byte for byte as it was published; parts of it by `Range`.

    `lineage.json` is what the registry knows, in the form that a folder to publish has it.
    """
    version = context.registry.resolve(ref, caller)
    headers = {"x-adapter": version.ref_for(caller.tenant), "x-adapter-digest": version.digest}
    if file == LINEAGE_FILE:
        content = json.dumps(lineage_file(version), indent=2).encode()
        headers |= _checksum(hashlib.sha256(content).hexdigest())
        return Response(content, headers=headers, media_type="application/json")
    if file not in STORED:
        raise _no_file(version, file)
    context.registry.hold(version.digest)
    try:
        path, sha256 = await run_in_threadpool(_stored, context, version, file)
        return _HeldFile(context, version.digest, path, headers | _checksum(sha256))
    except BaseException:
        context.registry.release(version.digest)
        raise


class _HeldFile(FileResponse):
    """Gives the version back however the answer ends: sent, failed, or the client gone."""

    chunk_size = MIB

    def __init__(self, context: ServerContext, digest: str, path: Path, headers: dict[str, str]) -> None:
        kind = "application/octet-stream" if path.name == WEIGHTS_FILE else "application/json"
        super().__init__(path, headers=headers, media_type=kind, stat_result=path.stat())
        self._context, self._digest = context, digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._context.registry.release(self._digest)


def lineage_file(version: AdapterVersion) -> Object:
    """What `lineage.json` says: the lineage, and how the base was quantised in training if that is known."""
    known = version.trained_on_quantization
    return lineage_object(version.lineage) | ({} if known is None else {"quantization": known})


def _stored(context: ServerContext, version: AdapterVersion, file: str) -> tuple[Path, str]:
    """Where the file lies and its SHA-256, hex. Fetched from afar if it has to be."""
    path = context.registry.folder(version.digest) / file
    try:
        status = path.stat()
    except FileNotFoundError:
        raise _no_file(version, file) from None
    return path, _sha256(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256(path: Path, inode: int, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(sha256: str) -> dict[str, str]:
    return {"x-sha256": sha256, "etag": f'"{sha256}"'}


def _no_file(version: AdapterVersion, file: str) -> APIError:
    message = f"{version.ref} has no file {file[:100]!r}; there are {', '.join((*STORED, LINEAGE_FILE))}."
    return APIError(404, message, param="file", code="file_not_found")
