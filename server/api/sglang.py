"""SGLang's routes for adapters, with its bodies and its JSON answers."""

from __future__ import annotations

from collections.abc import Awaitable

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from adapters.errors import AdapterError
from adapters.registry.records import Caller
from server.api.auth import CurrentCaller
from server.api.body import read_json
from server.api.context import OpenContext, ServerContext
from server.api.errors import APIError, from_adapter_error
from server.api.folders import delete_name, publish_from, user_error
from server.api.models import adapter_names
from server.api.schemas import Ignored, Strict

router = APIRouter()
_IN_USE = "Unload it first, or publish its next version with POST /v1/adapters."
_TENSORS = (
    "Tensors in a request are pickled, and this server opens no pickle: "
    "upload adapter_config.json and adapter_model.safetensors to POST /v1/adapters."
)


class LoadRequest(Strict):
    """`lora_path` is a folder beneath the one that the operator allowed; `pinned` is never evicted."""

    lora_name: str = Field(min_length=1, max_length=256)
    lora_path: str = Field(min_length=1, max_length=4096)
    pinned: bool = False
    lora_id: Ignored = None


class UnloadRequest(Strict):
    """SGLang finds the adapter by its name; so do we."""

    lora_name: str = Field(min_length=1, max_length=256)
    lora_id: Ignored = None


@router.post("/load_lora_adapter")
async def load_lora_adapter(request: Request, context: OpenContext, caller: CurrentCaller) -> JSONResponse:
    """Publish the adapter in a folder on the server, under a name that is not in use."""

    async def load() -> None:
        body = await read_json(request, LoadRequest)
        await publish_from(
            context,
            caller,
            body.lora_name,
            body.lora_path,
            field="lora_path",
            in_use=_IN_USE,
            desired="pinned" if body.pinned else "",
        )

    return await _answered(context, caller, load())


@router.post("/unload_lora_adapter")
async def unload_lora_adapter(request: Request, context: OpenContext, caller: CurrentCaller) -> JSONResponse:
    """Delete every version of a name."""

    async def unload() -> None:
        body = await read_json(request, UnloadRequest)
        await delete_name(context, caller, body.lora_name)

    return await _answered(context, caller, unload())


@router.post("/load_lora_adapter_from_tensors")
async def load_lora_adapter_from_tensors(context: OpenContext, caller: CurrentCaller) -> JSONResponse:
    """Refused, without a look at the body."""

    async def refuse() -> None:
        raise user_error(_TENSORS)

    return await _answered(context, caller, refuse())


async def _answered(context: ServerContext, caller: Caller, work: Awaitable[None]) -> JSONResponse:
    """What SGLang answers, however `work` ends: 200, or 400 for what the client can mend."""
    refusal: APIError | None = None
    try:
        await work
    except APIError as error:
        refusal = error
    except AdapterError as error:
        refusal = from_adapter_error(error)
    names = await run_in_threadpool(adapter_names, context, caller)
    body = {
        "success": refusal is None,
        "error_message": None if refusal is None else refusal.line,
        "loaded_adapters": {name: version.ref for name, version in names.items()},
    }
    if refusal is None:
        return JSONResponse(body)
    status = 400 if refusal.status in (404, 409) else refusal.status
    return JSONResponse(body, status, headers=refusal.headers)
