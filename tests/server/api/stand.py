"""The application on a real registry: small true adapters go in over HTTP, and any tenant may call."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from fastapi import FastAPI
from safetensors.torch import save
from starlette.testclient import TestClient

from adapters.base import BaseSpec, LinearSpec
from adapters.limits import AdapterLimits
from adapters.registry.records import LOCAL, Caller, Quota
from adapters.registry.registry import Registry
from server.api.app import create_app
from server.api.auth import get_caller
from server.api.context import ServerContext
from server.jobs.service import Service, open_service
from tests.server.api.fakes import FakeEngine, make_context

PATH = "/v1/adapters"
LINEAR = "model.layers.0.self_attn.q_proj"
BASE = BaseSpec(name="tiny", digest="ba5e" * 16, linears={LINEAR: LinearSpec(LINEAR, 8, 8)})


def config(alpha: int) -> bytes:
    """Adapters with another `alpha` are other adapters."""
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": alpha, "target_modules": ["q_proj"]}
    return json.dumps(fields).encode()


@cache
def weights(rank: int = 2) -> bytes:
    """A safetensors file that fits `BASE`."""
    prefix = f"base_model.model.{LINEAR}"
    tensors = {f"{prefix}.lora_A.weight": torch.ones(rank, 8), f"{prefix}.lora_B.weight": torch.ones(8, rank)}
    return bytes(save(tensors))


@dataclass
class Stand:
    """`caller`: who sends the requests from now on."""

    app: FastAPI
    client: TestClient
    context: ServerContext
    registry: Registry
    caller: Caller = LOCAL

    @property
    def engine(self) -> FakeEngine:
        return cast(FakeEngine, self.context.engine)

    @property
    def training(self) -> Service:
        assert self.context.training is not None
        return self.context.training

    def upload(self, name: str, alpha: int = 1, *, wait: bool | None = None, **parts: Any) -> Any:
        """Publish over HTTP; `parts` are further parts, or others than usual."""
        files: dict[str, Any] = {"name": name, "config": config(alpha), "weights": weights(), **parts}
        sent = {part: (None, value) for part, value in files.items() if value is not None}
        return self.client.post(PATH, files=sent, params={} if wait is None else {"wait": wait})

    def publish(self, name: str, *alphas: int) -> list[dict[str, Any]]:
        """A version for each of `alphas`, which follow one another in the alias `default`."""
        made = [self.upload(name, alpha) for alpha in alphas]
        assert [answer.status_code for answer in made] == [201] * len(made), made[-1].text
        return [answer.json() for answer in made]

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get(f"{PATH}/{path}".rstrip("/"), params=query)

    def post(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> Any:
        return self.client.post(f"{PATH}/{path}", json=body, headers=headers)

    def put(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> Any:
        return self.client.put(f"{PATH}/{path}", json=body, headers=headers)

    def delete(self, path: str, **query: Any) -> Any:
        return self.client.delete(f"{PATH}/{path}", params=query)

    def default(self, name: str) -> dict[int, int]:
        """What the alias `default` means: percents by version."""
        (alias,) = (a for a in self.get(f"{name}/aliases").json()["data"] if a["alias"] == "default")
        return {target["version"]: target["percent"] for target in alias["targets"]}

    @contextmanager
    def tenant(self, name: str, *, operator: bool = False) -> Iterator[None]:
        """Requests of this block come from a key of tenant `name`, which is made if it is not there."""
        if name not in {tenant.name for tenant in self.registry.tenants.list()}:
            self.registry.tenants.put(name, Quota())
        before, self.caller = self.caller, Caller(name, f"key-{name}", operator)
        try:
            yield
        finally:
            self.caller = before


@contextmanager
def standing(folder: Path) -> Iterator[Stand]:
    """A stand whose data lies beneath `folder`, and stays there."""
    context = make_context(folder / "data")
    with Registry(folder / "data", BASE, AdapterLimits()) as registry:
        context.base, context.registry = BASE, registry
        context.training = open_service(context.settings, registry, BASE.digest)
        app = create_app(context)
        with TestClient(app) as client:
            stand = Stand(app, client, context, registry)
            app.dependency_overrides[get_caller] = lambda: stand.caller
            yield stand


def error(answer: Any) -> tuple[int, str]:
    """Status and code of a refusal."""
    return answer.status_code, answer.json()["error"]["code"]


def eventually(happened: Callable[[], bool]) -> None:
    """Wait for what another thread or task does."""
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)
