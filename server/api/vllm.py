"""vLLM's two routes for adapters, with its bodies and its text answers, so that its users can switch."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse

from adapters.errors import AdapterError, AdapterNotFound
from server.api.body import read_json
from server.api.context import OpenContext
from server.api.errors import APIError, from_adapter_error
from server.api.publishing import publish
from server.api.schemas import Ignored, Strict, Unsupported

router = APIRouter()
FILES = ("adapter_config.json", "adapter_model.safetensors")


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
async def load_lora_adapter(request: Request, context: OpenContext) -> PlainTextResponse:
    """Publish the adapter in a folder on the server; `load_inplace` adds a version to a name in use."""
    body = await read_json(request, LoadRequest)
    name = body.lora_name
    if not name or not body.lora_path:
        raise _user_error("Both 'lora_name' and 'lora_path' must be provided.")
    folder = await run_in_threadpool(allowed_folder, context.settings.adapter_dir, body.lora_path)
    if not body.load_inplace and context.registry.versions(name):
        raise _user_error(
            f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
            "set 'load_inplace' to True."
        )
    try:
        await publish(context, lambda: context.registry.publish_folder(name, folder, source=body.lora_path))
    except AdapterError as error:
        refused = from_adapter_error(error)
        if refused.status == 400:
            raise _user_error(str(error)) from None
        raise refused from None
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


@router.post("/v1/unload_lora_adapter")
async def unload_lora_adapter(request: Request, context: OpenContext) -> PlainTextResponse:
    """Delete every version of a name."""
    body = await read_json(request, UnloadRequest)
    if not body.lora_name:
        raise _user_error("'lora_name' needs to be provided to unload a LoRA adapter.")
    try:
        await run_in_threadpool(context.registry.delete, body.lora_name)
    except AdapterNotFound:
        raise _not_found(f"The lora adapter '{body.lora_name}' cannot be found.") from None
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def allowed_folder(adapter_dir: Path | None, path: str) -> Path:
    """The real folder behind `path`, if it and its files lie beneath `adapter_dir`.

    Links are followed before the comparison. What lies outside is refused before it is looked at, so the
    answer doesn't tell whether it exists.
    """
    if adapter_dir is None:
        message = "Loading from a path is off: start with --adapter-dir, or upload to POST /v1/adapters."
        raise APIError(403, message, param="lora_path", code="adapter_dir_not_set")
    try:
        root = adapter_dir.resolve()
        folder = (root / path).resolve()
        files = [(folder / file).resolve() for file in FILES]
        if not all(place.is_relative_to(root) for place in (folder, *files)):
            message = "'lora_path' lies outside the folder that the operator allows (--adapter-dir)."
            raise APIError(403, message, param="lora_path", code="path_not_allowed")
        if not all(file.is_file() for file in files):
            raise _not_found(f"No adapter found for {path}: it takes a folder with {' and '.join(FILES)}.")
    except (OSError, ValueError, RuntimeError):
        # Too long, with a zero byte, or a circle of links.
        raise _user_error("'lora_path' is not a usable path.") from None
    return folder


def _user_error(message: str) -> APIError:
    return APIError(400, message, kind="InvalidUserInput", code=400)


def _not_found(message: str) -> APIError:
    return APIError(404, message, kind="NotFoundError", code=404)
