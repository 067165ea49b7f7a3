"""The application: routes, limits and error handlers around one `ServerContext`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from server.api import (
    adapters,
    aliases,
    audit,
    chat,
    classify,
    completions,
    embeddings,
    files,
    health,
    keys,
    lifecycle,
    lineage,
    merged,
    models,
    openapi,
    sagemaker,
    sglang,
    shares,
    status,
    tenants,
    vllm,
)
from server.api.auth import Gate
from server.api.context import ServerContext
from server.api.desired import desired_loaded
from server.api.errors import add_error_handlers
from server.api.fine_tuning import events, jobs
from server.api.fine_tuning import files as training_files
from server.api.fine_tuning import limits as model_limits
from server.api.fine_tuning.errors import add_job_errors
from server.api.fine_tuning.sweeping import sweeping
from server.api.limits import BodyLimit
from server.api.origins import SameOrigin
from server.api.publishing import check_later, stop_checks
from server.api.shadow import stop_shadows
from server.api.upload import remove_left_over

ROUTERS = (
    *(chat, completions, classify, embeddings, models),
    # A reference to an adapter may hold a slash, so the routes below one come before the adapter itself.
    *(aliases, lifecycle, lineage, files, merged, shares),
    *(adapters, vllm, sglang, sagemaker, health, status),
    *(training_files, jobs, events, model_limits),
    *(tenants, keys, audit, openapi),
)


def create_app(context: ServerContext) -> FastAPI:
    """The ASGI application. The engine and the registry belong to the caller, who starts and stops them."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(remove_left_over, context.settings.data_dir)
        await run_in_threadpool(merged.remove_left_over, context.settings.data_dir)
        for version in context.registry.unfinished():
            check_later(context, version)
        with desired_loaded(context):
            async with sweeping(context.training):
                yield
        await stop_checks(context)
        await stop_shadows(context)

    # Bodies are checked by the handlers, so FastAPI's own document would show none of them: `openapi` does.
    app = FastAPI(title="Multilora", openapi_url=None, lifespan=lifespan)
    app.state.context = context
    app.add_middleware(Gate, routes=app.routes, context=context)  # the innermost
    app.add_middleware(BodyLimit, settings=context.settings)
    app.add_middleware(SameOrigin, settings=context.settings)
    add_error_handlers(app)
    add_job_errors(app)
    for module in ROUTERS:
        app.include_router(module.router)
    return app
