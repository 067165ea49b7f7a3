"""vLLM's two routes for adapters, with its bodies and its text answers, so that its users can switch."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import PlainTextResponse

from server.api.auth import CurrentCaller
from server.api.body import read_json
from server.api.context import OpenContext
from server.api.folders import delete_name, publish_from, user_error
from server.api.schemas import Ignored, Strict, Unsupported

router = APIRouter()
SET_INPLACE = "If you want to load the adapter in place, set 'load_inplace' to True."


class LoadRequest(Strict):
    """`lora_path` is a folder beneath the one that the operator allowed."""

    lora_name: str = Field(max_length=256)
    lora_path: str = Field(max_length=4096)
    load_inplace: bool = False
    is_3d_lora_weight: Unsupported = None


class UnloadRequest(Strict):
    """vLLM carries the number through and uses the name; so do we."""

    lora_name: str = Field(max_length=256)
    lora_int_id: Ignored = None


@router.post("/v1/load_lora_adapter")
async def load_lora_adapter(
    request: Request, context: OpenContext, caller: CurrentCaller
) -> PlainTextResponse:
    """Publish the adapter in a folder on the server; `load_inplace` adds a version to a name in use."""
    body = await read_json(request, LoadRequest)
    name, path = body.lora_name, body.lora_path
    if not name or not path:
        raise user_error("Both 'lora_name' and 'lora_path' must be provided.")
    in_use = None if body.load_inplace else SET_INPLACE
    await publish_from(context, caller, name, path, field="lora_path", in_use=in_use)
    return loaded(name)


@router.post("/v1/unload_lora_adapter")
async def unload_lora_adapter(
    request: Request, context: OpenContext, caller: CurrentCaller
) -> PlainTextResponse:
    """Delete every version of a name."""
    body = await read_json(request, UnloadRequest)
    if not body.lora_name:
        raise user_error("'lora_name' needs to be provided to unload a LoRA adapter.")
    await delete_name(context, caller, body.lora_name)
    return removed(body.lora_name)


def loaded(name: str) -> PlainTextResponse:
    """vLLM's words."""
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


def removed(name: str) -> PlainTextResponse:
    """vLLM's words."""
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")
