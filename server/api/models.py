"""`GET /v1/models` and `GET /v1/models/{id}`: what the caller may ask, by the names that `model` takes."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.responses import Response

from adapters.errors import AdapterError
from adapters.registry.names import DEFAULT_ALIAS, parse_ref
from adapters.registry.records import AdapterVersion, Alias, Caller
from server.api.auth import CurrentCaller
from server.api.context import Context, ServerContext
from server.api.errors import model_not_found
from server.api.spellings import adapter_in

router = APIRouter()
Card = dict[str, object]


@router.get("/v1/models")
def list_models(context: Context, caller: CurrentCaller) -> Response:
    """The base, then each adapter that the caller may see, under its name and each further alias.

    Its versions are at `/v1/adapters`. In a thread: there may be a hundred thousand of them.
    """
    cards = [base_card(context)]
    for name, live in _by_name(context, caller).items():
        for alias in sorted(_aliases(context, caller, live[-1]), key=_default_first):
            meant = _main_target(alias, live)
            if meant is not None:
                model = name if alias.alias == DEFAULT_ALIAS else f"{name}@{alias.alias}"
                cards.append(adapter_card(context, caller, model, meant))
    return Response(to_json({"object": "list", "data": cards}), media_type="application/json")


@router.get("/v1/models/{model:path}")
async def get_model(context: Context, caller: CurrentCaller, model: str) -> Card:
    """The card of whatever `model` may be in a request."""
    if model == context.base.name:
        return base_card(context)
    try:
        version = _meant(context, caller, adapter_in(model, context.base.name))
    except AdapterError:
        raise model_not_found(model) from None
    return adapter_card(context, caller, model, version)


def adapter_names(context: ServerContext, caller: Caller) -> dict[str, AdapterVersion]:
    """Each adapter that the caller may see, by the name that it takes in `model`, and what that means now."""
    names = {}
    for name, live in _by_name(context, caller).items():
        for alias in _aliases(context, caller, live[-1]):
            meant = _main_target(alias, live)
            if alias.alias == DEFAULT_ALIAS and meant is not None:
                names[name] = meant
    return names


def base_card(context: ServerContext) -> Card:
    """The base: no parent, and itself as its root; `quantization` is that of its linear layers, or null."""
    card = _card(context, context.base.name, context.started, context.base.name, None)
    return {**card, "quantization": context.base.quantization}


def adapter_card(context: ServerContext, caller: Caller, model: str, version: AdapterVersion) -> Card:
    """An adapter as `model`; `root` is the version that answers to it now, `task` PEFT's `task_type`.

    `parent_adapter` is what its training began with, which is told only to who owns it.
    """
    return {
        **_card(context, model, version.created, version.ref_for(caller.tenant), context.base.name),
        "parent_adapter": version.lineage.parent if caller.owns(version.tenant) else None,
        "task": version.task,
        "labels": list(version.labels),
    }


def _by_name(context: ServerContext, caller: Caller) -> dict[str, list[AdapterVersion]]:
    """The live versions, oldest first, by the name that the caller would send."""
    names: dict[str, list[AdapterVersion]] = {}
    for version in context.registry.list(caller):
        own = version.tenant == caller.tenant
        name = version.name if own else f"{version.tenant}/{version.name}"
        names.setdefault(name, []).append(version)
    return names


def _aliases(context: ServerContext, caller: Caller, version: AdapterVersion) -> list[Alias]:
    try:
        return list(context.registry.aliases(f"{version.tenant}/{version.name}", caller))
    except AdapterError:
        return []  # it has just been deleted


def _default_first(alias: Alias) -> tuple[bool, str]:
    return alias.alias != DEFAULT_ALIAS, alias.alias


def _main_target(alias: Alias, live: list[AdapterVersion]) -> AdapterVersion | None:
    """What most requests get by an alias; None: it is not for this base, or has just been deleted."""
    number = max(alias.targets, key=lambda target: (target.percent, target.version)).version
    return next((version for version in live if version.version == number), None)


def _meant(context: ServerContext, caller: Caller, ref: str) -> AdapterVersion:
    """As `registry.resolve`, without its chance between the targets of a weighted alias."""
    version = context.registry.resolve(ref, caller)
    parsed = parse_ref(ref)
    if parsed.version is None:
        live = list(context.registry.versions(f"{version.tenant}/{version.name}", caller))
        for alias in _aliases(context, caller, version):
            if alias.alias == (parsed.alias or DEFAULT_ALIAS):
                return _main_target(alias, live) or version
    return version


def _card(context: ServerContext, name: str, created: float, root: str, parent: str | None) -> Card:
    return {
        "id": name,
        "object": "model",
        "created": int(created),
        "owned_by": "multilora",
        "root": root,
        "parent": parent,
        "max_model_len": context.engine.max_model_len,
    }
