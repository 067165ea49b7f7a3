"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from fastapi import APIRouter

from adapters.errors import AdapterNotFound
from adapters.registry.records import AdapterVersion
from server.api.context import Context, ServerContext
from server.api.errors import model_not_found

router = APIRouter()


@router.get("/v1/models")
async def list_models(context: Context) -> dict[str, object]:
    """The base, then each live adapter once, under its name; its versions are at `/v1/adapters`."""
    newest = {version.name: version for version in context.registry.list()}
    cards = [adapter_card(context, name, version) for name, version in newest.items()]
    return {"object": "list", "data": [base_card(context), *cards]}


@router.get("/v1/models/{model:path}")
async def get_model(context: Context, model: str) -> dict[str, object]:
    """The card of one name, `name@version` included."""
    if model == context.base.name:
        return base_card(context)
    try:
        version = context.registry.resolve(model)
    except AdapterNotFound:
        raise model_not_found(model) from None
    return adapter_card(context, model, version)


def base_card(context: ServerContext) -> dict[str, object]:
    """The base: no parent, and itself as its root; `quantization` is that of its linear layers, or null."""
    card = _card(context, context.base.name, context.started, context.base.name, None)
    return {**card, "quantization": context.base.quantization}


def adapter_card(context: ServerContext, name: str, version: AdapterVersion) -> dict[str, object]:
    """An adapter under `name`; `root` is the version that answers to it now, `task` PEFT's `task_type`."""
    card = _card(context, name, version.created, version.ref, context.base.name)
    return {**card, "task": version.task, "labels": list(version.labels)}


def _card(
    context: ServerContext, name: str, created: float, root: str, parent: str | None
) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": int(created),
        "owned_by": "multilora",
        "root": root,
        "parent": parent,
        "max_model_len": context.engine.max_model_len,
    }
