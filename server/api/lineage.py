"""Where a version comes from: the part `lineage` of an upload, and `GET /v1/adapters/{ref}/lineage`."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from adapters.checkpoint.strict_json import parse_object
from adapters.registry.records import DataFile, Lineage
from server.api.auth import CurrentCaller
from server.api.body import parse_json
from server.api.context import Context
from server.api.errors import APIError
from server.api.objects import Object, adapter_object, listed
from server.api.schemas import Strict

router = APIRouter()
LINEAGE_BYTES = 64 * 1024
MAX_DATA = 256
MAX_SCORES = 256
_DIGEST = r"^[0-9a-f]{64}$"


class DataFields(Strict):
    """A file that it was trained on; `sha256` is hex."""

    name: str = Field(min_length=1, max_length=256)
    sha256: str = Field(pattern=_DIGEST)


class LineageFields(Strict):
    """See `Lineage`."""

    parent: str | None = Field(None, min_length=1, max_length=256)
    parent_digest: str | None = Field(None, pattern=_DIGEST)
    job: str | None = Field(None, min_length=1, max_length=256)
    data: list[DataFields] = Field([], max_length=MAX_DATA)
    scores: dict[str, float] = Field({}, max_length=MAX_SCORES)


def parse_lineage(raw: bytes) -> Lineage:
    """What a part `lineage` says.

    Raises:
        APIError, InvalidAdapter: it is no JSON object, names a key twice or has a field that is not known.
    """
    parse_object(raw, "lineage")
    try:
        fields = parse_json(raw, LineageFields)
    except APIError as error:
        param = f"lineage.{error.param}" if error.param else "lineage"
        raise APIError(400, f"lineage: {error.message}", param=param, code=error.code) from None
    return Lineage(
        parent=fields.parent,
        parent_digest=fields.parent_digest,
        job=fields.job,
        data=tuple(DataFile(file.name, file.sha256) for file in fields.data),
        scores=tuple(fields.scores.items()),
    )


@router.get("/v1/adapters/{ref:path}/lineage")
async def get_lineage(context: Context, caller: CurrentCaller, ref: str) -> Object:
    """The version, its parent, the parent's parent and so on, as far as they are known and visible."""
    chain = await run_in_threadpool(context.registry.lineage, ref, caller)
    return listed(adapter_object(context, caller, version) for version in chain)
