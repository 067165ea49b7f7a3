"""Versions and aliases as the API shows them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from adapters.errors import AdapterNotFound
from adapters.registry.lineage import quantization_warning
from adapters.registry.names import full_name, name_for, parse_ref
from adapters.registry.records import LIVE, AdapterVersion, Alias, Caller, Lineage
from server.api.context import ServerContext

Object = dict[str, object]


def canonical(name: str, caller: Caller) -> str:
    """The full name of the adapter that a caller calls `name`, which the registry has taken already."""
    ref = parse_ref(name)
    return full_name(ref.tenant or caller.tenant, ref.name)


def adapter_object(context: ServerContext, caller: Caller, version: AdapterVersion) -> Object:
    """One version that `caller` may see, with the aliases that lead to it."""
    return version_object(context, caller, version, aliases_of(context, caller, version))


def aliases_of(context: ServerContext, caller: Caller, version: AdapterVersion) -> tuple[Alias, ...]:
    """All aliases of the adapter that `version` belongs to; a tombstone may be the last of its name."""
    if version.state not in LIVE:
        return ()
    try:
        return tuple(context.registry.aliases(f"{version.tenant}/{version.name}", caller))
    except AdapterNotFound:  # not shared any more, since a moment ago
        return ()


def version_object(
    context: ServerContext, caller: Caller, version: AdapterVersion, aliases: Iterable[Alias]
) -> Object:
    """`aliases`: of its adapter. `tier` is the fastest memory that has it now."""
    warning = quantization_warning(context.base, version.trained_on_quantization)
    led = {
        alias.alias: target.percent
        for alias in aliases
        for target in alias.targets
        if target.version == version.version
    }
    return {
        "id": version.ref_for(caller.tenant),
        "object": "adapter",
        "tenant": version.tenant,
        "name": version.name,
        "version": version.version,
        "state": version.state,
        "reason": version.reason,
        "aliases": led,
        "shadow_of": [alias.alias for alias in aliases if alias.shadow == version.version],
        "desired": version.desired,
        "tier": context.engine.residency(version.digest) if version.digest else "disk",
        "digest": version.digest,
        "base": context.base.name,
        "base_digest": version.base_digest,
        "created": int(version.created),
        "size": version.size,
        "rank": version.rank,
        "parameters": version.parameters,
        "target_modules": list(version.target_modules),
        "variant": version.variant,
        "task": version.task,
        "labels": list(version.labels),
        "source": version.source,
        "lineage": lineage_object(version.lineage),
        "trained_on_quantization": version.trained_on_quantization,
        "proof": asdict(version.proof),
        "warnings": [] if warning is None else [warning],
    }


def lineage_object(lineage: Lineage) -> Object:
    """Every field, whether anything was said of it or not."""
    return {
        "parent": lineage.parent,
        "parent_digest": lineage.parent_digest,
        "job": lineage.job,
        "data": [asdict(file) for file in lineage.data],
        "scores": dict(lineage.scores),
    }


def alias_object(caller: Caller, alias: Alias) -> Object:
    """One alias, or what it was before one of its changes; named as `caller` can ask for it.

    Whose key changed it is told to who owns it.
    """
    name = name_for(caller.tenant, alias.tenant, alias.name)
    return {
        "id": f"{name}@{alias.alias}",
        "object": "adapter.alias",
        "name": name,
        "alias": alias.alias,
        "targets": [
            {"id": f"{name}@{target.version}", "version": target.version, "percent": target.percent}
            for target in alias.targets
        ],
        "shadow": alias.shadow,
        "revision": alias.revision,
        "updated": int(alias.updated),
        "actor": alias.actor if caller.owns(alias.tenant) else None,
    }


def etag(alias: Alias) -> dict[str, str]:
    """The header that `If-Match` of a later change is to repeat."""
    return {"etag": f'"{alias.revision}"'}


def listed(objects: Iterable[Object]) -> Object:
    """A list that has no pages."""
    return {"object": "list", "data": list(objects)}
