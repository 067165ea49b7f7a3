"""`GET /health` for load balancers and `GET /metrics` for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from server.api.context import Context
from server.metrics import CONTENT_TYPE

router = APIRouter()


@router.get("/health")
async def health(context: Context) -> Response:
    """200 while the server takes requests; 503 when it drains or its engine has failed."""
    stats = context.engine.stats()
    counts = {"running": stats.running, "waiting": stats.waiting}
    body = {"status": context.status, "model": context.base.name, **counts}
    return JSONResponse(body, 200 if context.status == "ok" else 503)


@router.get("/metrics")
async def metrics(context: Context) -> Response:
    """The metrics as text, from one snapshot of the engine."""
    return Response(context.metrics.render(), headers={"content-type": CONTENT_TYPE})
