"""What a caller needs for each route: one table, and what is not in it is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from adapters.registry.records import Scope

Rule = Scope | Literal["public"]
"""A scope that the caller's key must have; `public` needs no key."""

RULES: Mapping[str, Rule] = {
    "GET /health": "public",
    "GET /metrics": "metrics",
    "GET /openapi.json": "use",
    # Asking models
    "POST /v1/chat/completions": "use",
    "POST /v1/completions": "use",
    "POST /v1/embeddings": "use",
    "POST /v1/classify": "use",
    "POST /v1/token_classify": "use",
    "GET /v1/models": "use",
    "GET /v1/models/{model}": "use",
    "GET /v1/status": "use",
    # Adapters
    "GET /v1/adapters": "use",
    "GET /v1/adapters/{ref}": "use",
    "GET /v1/adapters/{ref}/aliases": "use",
    "GET /v1/adapters/{ref}/aliases/{alias}/history": "use",
    "GET /v1/adapters/{ref}/lineage": "use",
    "GET /v1/adapters/{ref}/files/{file}": "use",
    "POST /v1/adapters": "publish",
    "PUT /v1/adapters/{ref}/aliases/{alias}": "publish",
    "DELETE /v1/adapters/{ref}/aliases/{alias}": "publish",
    "POST /v1/adapters/{ref}/promote": "publish",
    "POST /v1/adapters/{ref}/rollback": "publish",
    "POST /v1/adapters/{ref}/canary": "publish",
    "POST /v1/adapters/{ref}/deprecate": "publish",
    "POST /v1/adapters/{ref}/preload": "publish",
    "POST /v1/adapters/{ref}/pin": "publish",
    "POST /v1/adapters/{ref}/unpin": "publish",
    "DELETE /v1/adapters/{ref}": "admin",
    "GET /v1/adapters/{ref}/merged": "admin",
    "GET /v1/adapters/{ref}/shares": "admin",
    "PUT /v1/adapters/{ref}/shares/{tenant}": "admin",
    "DELETE /v1/adapters/{ref}/shares/{tenant}": "admin",
    # The same by the names that peers have for it
    "POST /v1/load_lora_adapter": "publish",
    "POST /load_lora_adapter": "publish",
    "POST /load_lora_adapter_from_tensors": "publish",
    "POST /v1/unload_lora_adapter": "admin",
    "POST /unload_lora_adapter": "admin",
    "POST /adapters": "publish",
    "DELETE /adapters/{name}": "admin",
    # Training: data is for those who may publish what is made of it
    "POST /v1/files": "publish",
    "GET /v1/files": "publish",
    "GET /v1/files/{file_id}": "publish",
    "GET /v1/files/{file_id}/content": "publish",
    "DELETE /v1/files/{file_id}": "publish",
    "POST /v1/fine_tuning/jobs": "publish",
    "GET /v1/fine_tuning/jobs": "use",
    "GET /v1/fine_tuning/jobs/{job_id}": "use",
    "GET /v1/fine_tuning/jobs/{job_id}/events": "use",
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": "use",
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": "publish",
    "POST /v1/fine_tuning/jobs/{job_id}/pause": "publish",
    "POST /v1/fine_tuning/jobs/{job_id}/resume": "publish",
    "GET /v1/fine_tuning/model_limits": "use",
    # Tenants and keys
    "GET /v1/keys": "admin",
    "GET /v1/keys/{id}": "admin",
    "POST /v1/keys": "admin",
    "DELETE /v1/keys/{id}": "admin",
    "GET /v1/audit": "admin",
    "GET /v1/tenants": "operator",
    "GET /v1/tenants/{name}": "operator",
    "PUT /v1/tenants/{name}": "operator",
    "DELETE /v1/tenants/{name}": "operator",
    "POST /v1/registry/sweep": "operator",
}
"""Method and path template of each route. The names of parameters are for the reader."""


def find_rule(method: str, template: str) -> Rule | None:
    """The rule of a route such as `GET` and `/v1/models/{model:path}`; None: there is none, so nobody may."""
    return _BY_SHAPE.get(f"{method} {shape(template)}")


def shape(template: str) -> str:
    """`template` without the names and types of its parameters."""
    return re.sub(r"\{[^}]*\}", "{}", template)


_BY_SHAPE = {shape(route): rule for route, rule in RULES.items()}
