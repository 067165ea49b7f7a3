"""The application: routes, limits and error handlers around one `ServerContext`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from server.api import adapters, chat, classify, completions, embeddings, health, models, vllm
from server.api.context import ServerContext
from server.api.errors import add_error_handlers
from server.api.limits import BodyLimit
from server.api.origins import SameOrigin
from server.api.upload import remove_left_over


def create_app(context: ServerContext) -> FastAPI:
    """The ASGI application. The engine and the registry belong to the caller, who starts and stops them."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(remove_left_over, context.settings.data_dir)
        yield

    # Bodies are checked by the handlers, so FastAPI's own schema would show none of them: docs/api.md does.
    app = FastAPI(title="Multilora", openapi_url=None, lifespan=lifespan)
    app.state.context = context
    app.add_middleware(BodyLimit, settings=context.settings)
    app.add_middleware(SameOrigin, settings=context.settings)
    add_error_handlers(app)
    for module in (chat, completions, classify, embeddings, models, adapters, vllm, health):
        app.include_router(module.router)
    return app
