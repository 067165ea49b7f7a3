"""A server over real HTTP, the official client, and the other side of the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from adapters.registry.records import Scope
from server.jobs.records import Job
from server.jobs.service import Service
from tests.server.api.stand import Stand, standing
from tests.server.api.tenancy import Server, serving

ROWS = b'{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n'
Official = Callable[..., openai.OpenAI]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), max_training_file_mb=1) as server:
        server.registry.keys.create("default", "first", ("operator",))
        yield server


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """An application for requests that change nothing."""
    with standing(tmp_path_factory.mktemp("stand")) as stand:
        yield stand


@pytest.fixture(scope="module")
def service(server: Server) -> Service:
    assert server.context.training is not None
    return server.context.training


@pytest.fixture(scope="module")
def official(server: Server) -> Iterator[Official]:
    """Makes clients of a tenant, which refuse whatever is not as OpenAI says if they are `strict`."""
    made: list[openai.OpenAI] = []

    def make(tenant: str = "acme", *scopes: Scope, strict: bool = True) -> openai.OpenAI:
        if tenant != "default":
            server.registry.tenants.put(tenant)
        _, secret = server.registry.keys.create(tenant, "test", scopes or ("use", "publish"))
        client = openai.OpenAI(
            base_url=f"{server.url}/v1", api_key=secret, max_retries=0, _strict_response_validation=strict
        )
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


@pytest.fixture(scope="module")
def client(official: Official) -> openai.OpenAI:
    return official()


@pytest.fixture
def nothing_waits(service: Service) -> Iterator[None]:
    """What a test leaves in the queue is no other test's."""
    yield
    while (job := service.jobs.claim_check()) is not None:
        service.jobs.checked(job.id, job.request)
    for job in service.jobs.claim(1000):
        service.jobs.succeed(job.id, "left@1")


def upload(client: openai.OpenAI, content: bytes = ROWS, **more: Any) -> str:
    """The id of a new file."""
    return client.files.create(file=("data.jsonl", content), purpose="fine-tune", **more).id


def begin(service: Service, job_id: str) -> Job:
    """Have a job's data found good, and take it."""
    checking = service.jobs.claim_check()
    assert checking is not None
    assert checking.id == job_id
    service.jobs.checked(job_id, checking.request)
    (job,) = service.jobs.claim(1)
    assert job.id == job_id
    return job
