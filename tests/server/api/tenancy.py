"""A server of two tenants over real HTTP: a real registry, and an engine that only says hello."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import uvicorn

from adapters.limits import AdapterLimits
from adapters.registry.records import Scope
from adapters.registry.registry import Registry
from server.api.app import create_app
from server.api.context import ServerContext
from server.jobs.service import open_service
from tests.server.api.fakes import FakeEngine, make_context
from tests.server.api.stand import BASE, config, weights

EVERYTHING: tuple[Scope, ...] = ("use", "publish", "admin")


@dataclass
class Server:
    """A running server with an operator; `client` gives callers of any tenant."""

    url: str
    context: ServerContext
    registry: Registry

    @property
    def engine(self) -> FakeEngine:
        return cast(FakeEngine, self.context.engine)

    @contextmanager
    def client(self, tenant: str, *scopes: Scope) -> Iterator[Client]:
        """Requests with a new key of `tenant`, of all its tenant's scopes unless some are named."""
        if tenant != "default":
            self.registry.tenants.put(tenant)
        _, secret = self.registry.keys.create(tenant, "test", scopes or EVERYTHING)
        with Client(base_url=self.url, headers={"authorization": f"Bearer {secret}"}, timeout=30) as client:
            yield client


class Client(httpx.Client):
    """One caller."""

    def publish(self, name: str, alpha: int, **parts: str) -> httpx.Response:
        """Upload a small true adapter; another `alpha` is another content."""
        files: dict[str, Any] = {"name": name, "config": config(alpha), "weights": weights(), **parts}
        return self.post("/v1/adapters", files={part: (None, value) for part, value in files.items()})


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[Server]:
    """The application on a free port, with its data in `folder`."""
    context = make_context(folder / "data", **settings)
    with Registry(folder / "data", BASE, AdapterLimits()) as registry, socket.socket() as sock:
        context.base, context.registry = BASE, registry
        context.training = open_service(context.settings, registry, BASE.digest)
        sock.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(context), log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Server(f"http://127.0.0.1:{sock.getsockname()[1]}", context, registry)
        finally:
            server.should_exit = True
            thread.join()
