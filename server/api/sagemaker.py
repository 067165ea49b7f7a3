"""SageMaker's two routes for adapters, with vLLM's answers, as its containers have them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import PlainTextResponse

from adapters.registry.records import Desired
from server.api.auth import CurrentCaller
from server.api.body import read_json
from server.api.context import OpenContext
from server.api.folders import delete_name, publish_from, user_error
from server.api.schemas import Strict, Unsupported
from server.api.vllm import SET_INPLACE, loaded, removed

router = APIRouter()


class RegisterRequest(Strict):
    """`src` is a folder beneath the one that the operator allowed.

    `preload`: load it at each start too; `pin`: and never evict it.
    """

    name: str = Field(max_length=256)
    src: str = Field(max_length=4096)
    preload: bool = False
    pin: bool = False
    load_inplace: bool = False
    is_3d_lora_weight: Unsupported = None

    @property
    def desired(self) -> Desired:
        """As the registry calls it."""
        if self.pin:
            return "pinned"
        return "loaded" if self.preload else ""


@router.post("/adapters")
async def register_adapter(
    request: Request, context: OpenContext, caller: CurrentCaller
) -> PlainTextResponse:
    """Publish the adapter in a folder on the server."""
    body = await read_json(request, RegisterRequest)
    if not body.name or not body.src:
        raise user_error("Both 'name' and 'src' must be provided.")
    await publish_from(
        context,
        caller,
        body.name,
        body.src,
        field="src",
        in_use=None if body.load_inplace else SET_INPLACE,
        desired=body.desired,
    )
    return loaded(body.name)


@router.delete("/adapters/{name:path}")
async def unregister_adapter(context: OpenContext, caller: CurrentCaller, name: str) -> PlainTextResponse:
    """Delete every version of a name."""
    await delete_name(context, caller, name)
    return removed(name)
