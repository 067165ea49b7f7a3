"""One application on fakes, and clients for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import openai
import pytest
from starlette.testclient import TestClient

from server.api.app import create_app
from server.api.context import ServerContext
from tests.server.api.fakes import FakeEngine, FakeRegistry, make_context
from tests.server.api.stand import Stand, standing


@pytest.fixture
def context(tmp_path: Path) -> ServerContext:
    adapter_dir = tmp_path / "allowed"
    adapter_dir.mkdir()
    return make_context(tmp_path / "data", adapter_dir=adapter_dir)


@pytest.fixture
def engine(context: ServerContext) -> FakeEngine:
    return cast(FakeEngine, context.engine)


@pytest.fixture
def registry(context: ServerContext) -> FakeRegistry:
    return cast(FakeRegistry, context.registry)


@pytest.fixture
def client(context: ServerContext) -> Iterator[TestClient]:
    with TestClient(create_app(context), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    """The application on a real registry."""
    with standing(tmp_path) as stand:
        yield stand


@pytest.fixture
def official(client: TestClient) -> openai.OpenAI:
    """The official client, talking to the application in this process."""
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", max_retries=0, http_client=client)
