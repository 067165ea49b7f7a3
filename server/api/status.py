"""`GET /v1/status`: what runs now and what is in memory, and `POST /v1/registry/sweep`."""

from __future__ import annotations

import time
from dataclasses import asdict

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from adapters.registry.records import AdapterVersion, Caller
from server.api.auth import CurrentCaller
from server.api.context import Context, OpenContext, ServerContext
from server.api.objects import Object

router = APIRouter()


@router.get("/v1/status")
def get_status(context: Context, caller: CurrentCaller) -> Object:
    """The server's load and memory; of adapters in memory those that the caller may see, by name.

    In a thread: there may be a hundred thousand versions to look through.
    """
    stats = context.engine.stats()
    tiers = {adapter.digest: adapter.tier for adapter in stats.adapters_loaded}
    shown = [
        _adapter(context, caller, version, tiers.get(version.digest, "disk"))
        for version in context.registry.list(caller)
        if version.digest in tiers or version.desired or context.registry.holders(version.digest)
    ]
    named = {adapter["digest"] for adapter in shown}
    return {
        "object": "status",
        "status": context.status,
        "ready": context.status == "ok",
        "model": context.base.name,
        "base_digest": context.base.digest,
        "quantization": context.base.quantization,
        "uptime": int(time.time() - context.started),
        "running": stats.running,
        "waiting": stats.waiting,
        "uploads": context.uploads.total(),
        "checks": len(context.checks),
        "memory": {
            "kv_blocks_used": stats.kv_blocks_used,
            "kv_blocks": stats.kv_blocks_total,
            "adapter_bytes_device": stats.adapter_bytes_device,
            "adapter_bytes_host": stats.adapter_bytes_host,
            "adapter_budget_bytes": stats.adapter_budget_bytes,
            "merged_bytes": stats.merge.nbytes,
        },
        "adapters": shown,
        "others": sum(digest not in named for digest in tiers),
    }


def _adapter(context: ServerContext, caller: Caller, version: AdapterVersion, tier: str) -> Object:
    """`requests`: how many run on it or wait for it, on this server."""
    return {
        "id": version.ref_for(caller.tenant),
        "digest": version.digest,
        "state": version.state,
        "tier": tier,
        "desired": version.desired,
        "requests": context.registry.holders(version.digest),
        "size": version.size,
        "rank": version.rank,
    }


@router.post("/v1/registry/sweep")
async def sweep(context: OpenContext) -> Object:
    """Verify every stored file, put aside what does not match, remove what nothing needs."""
    return {"object": "registry.sweep", **asdict(await run_in_threadpool(context.registry.sweep))}
