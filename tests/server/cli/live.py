"""The true application with its registry and keys on a free port; only the model behind it is a fake."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from time import sleep

import torch
import uvicorn
from safetensors.torch import save_file

from adapters.base import BaseSpec, LinearSpec
from adapters.limits import AdapterLimits
from adapters.registry.records import Scope
from adapters.registry.registry import Registry
from server.api.app import create_app
from server.jobs.service import Service, open_service
from tests.server.api.fakes import make_context

LINEAR = "model.layers.0.self_attn.q_proj"
BASE = BaseSpec(name="tiny", digest="ba5e" * 16, linears={LINEAR: LinearSpec(LINEAR, 8, 8)})


@dataclass
class Live:
    """`operator`: the secret of the first key."""

    url: str
    registry: Registry
    operator: str
    folder: Path
    training: Service | None

    def key(self, *scopes: Scope, tenant: str = "default") -> str:
        """The secret of a new key."""
        return self.registry.keys.create(tenant, "test", scopes)[1]

    def adapter(self, alpha: int = 1) -> Path:
        """A folder as PEFT saves it; another `alpha` is another adapter."""
        folder = self.folder / f"alpha-{alpha}"
        if not folder.exists():
            folder.mkdir()
            config = {"peft_type": "LORA", "r": 2, "lora_alpha": alpha, "target_modules": ["q_proj"]}
            (folder / "adapter_config.json").write_text(json.dumps(config))
            name = f"base_model.model.{LINEAR}"
            tensors = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
            save_file(tensors, folder / "adapter_model.safetensors")
        return folder


@contextmanager
def living(folder: Path) -> Iterator[Live]:
    """A server whose data lies beneath `folder`, with one operator's key."""
    context = make_context(folder / "data")
    with Registry(folder / "data", BASE, AdapterLimits()) as registry:
        context.base, context.registry = BASE, registry
        context.training = open_service(context.settings, registry, BASE.digest)
        operator = registry.keys.create("default", "first", ("operator",))[1]
        server = uvicorn.Server(uvicorn.Config(create_app(context), port=0, log_level="error"))
        thread = Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield Live(f"http://127.0.0.1:{port}", registry, operator, folder, context.training)
        finally:
            server.should_exit = True
            thread.join()
