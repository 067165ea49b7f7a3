"""`/v1/tenants`: tenants and their quotas, for operators."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from adapters.registry.records import Quota, Tenant
from server.api.auth import CurrentCaller
from server.api.body import read_json
from server.api.context import Context, OpenContext
from server.api.schemas import INT64, Strict

router = APIRouter()


class QuotaFields(Strict):
    """As `Quota`; null is no bound."""

    max_versions: int | None = Field(None, ge=0, lt=INT64)
    max_bytes: int | None = Field(None, ge=0, lt=INT64)
    max_rank: int | None = Field(None, ge=1, lt=INT64)
    max_in_flight: int | None = Field(None, ge=1, lt=INT64)
    tokens_per_minute: int | None = Field(None, ge=1, lt=INT64)
    max_jobs: int | None = Field(None, ge=0, lt=INT64)
    max_file_bytes: int | None = Field(None, ge=0, lt=INT64)
    weight: float = Field(1.0, ge=0.01, le=100)


class TenantRequest(Strict):
    """The whole quota; what is left out has no bound."""

    quota: QuotaFields = QuotaFields()


@router.get("/v1/tenants")
async def list_tenants(context: Context) -> dict[str, object]:
    """All of them, by name."""
    tenants = context.registry.tenants.list()
    return {"object": "list", "data": [tenant_object(tenant) for tenant in tenants]}


@router.get("/v1/tenants/{name}")
async def get_tenant(context: Context, name: str) -> dict[str, object]:
    """One of them."""
    return tenant_object(context.registry.tenants.get(name))


@router.put("/v1/tenants/{name}")
async def put_tenant(
    request: Request, context: OpenContext, caller: CurrentCaller, name: str
) -> dict[str, object]:
    """Make a tenant, or give one another quota."""
    body = await read_json(request, TenantRequest)
    quota = Quota(**body.quota.model_dump())
    return tenant_object(await run_in_threadpool(lambda: context.registry.tenants.put(name, quota, caller)))


@router.delete("/v1/tenants/{name}")
async def remove_tenant(context: OpenContext, caller: CurrentCaller, name: str) -> dict[str, object]:
    """Remove a tenant without adapters; its keys are revoked."""
    await run_in_threadpool(lambda: context.registry.tenants.remove(name, caller))
    return {"id": name, "object": "tenant.deleted", "deleted": True}


def tenant_object(tenant: Tenant) -> dict[str, object]:
    """A tenant as the API shows it."""
    return {
        "id": tenant.name,
        "object": "tenant",
        "created": int(tenant.created),
        "quota": asdict(tenant.quota),
    }
