"""Which routes a model serves: by the kind of its base, and by the task that its adapter was trained for."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.base import BaseKind
from server.api.errors import APIError
from server.api.lease import Lease

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
CLASSIFY = "/v1/classify"
TOKEN_CLASSIFY = "/v1/token_classify"
EMBEDDINGS = "/v1/embeddings"

BY_KIND: dict[BaseKind, tuple[str, ...]] = {
    "decoder": (CHAT, COMPLETIONS, CLASSIFY, TOKEN_CLASSIFY, EMBEDDINGS),
    "encoder": (CLASSIFY, TOKEN_CLASSIFY, EMBEDDINGS),
    "encoder-decoder": (COMPLETIONS,),
}
BY_TASK: dict[str | None, tuple[str, ...]] = {
    None: (CHAT, COMPLETIONS, EMBEDDINGS),
    "CAUSAL_LM": (CHAT, COMPLETIONS, EMBEDDINGS),
    "SEQ_2_SEQ_LM": (COMPLETIONS,),
    "SEQ_CLS": (CLASSIFY, EMBEDDINGS),
    "TOKEN_CLS": (TOKEN_CLASSIFY, EMBEDDINGS),
    "FEATURE_EXTRACTION": (EMBEDDINGS,),
}
"""By PEFT's `task_type`. Any adapter may embed: heads come after what is pooled."""

HEADS = {CLASSIFY: "SEQ_CLS", TOKEN_CLASSIFY: "TOKEN_CLS"}
"""What a base must have been trained for by itself, to serve a route without an adapter."""


def check_route(lease: Lease, route: str) -> None:
    """A 400 that names the routes to use instead, if the model that was asked can't serve `route`."""
    base = lease.context.base
    kind = base.kind
    if route not in BY_KIND[kind]:
        raise _unsupported(
            f"The base model `{base.name}` is an {kind}; with adapters trained for them, it serves "
            f"{_listed(BY_KIND[kind])}."
        )
    if not lease.versions:
        wanted = HEADS.get(route)
        if wanted is not None and base.task != wanted:
            raise _unsupported(
                f"The base model `{lease.model}` has no head of its own to classify with; name an adapter "
                f"that was trained for {wanted}."
            )
    for version in lease.versions:
        served = [path for path in BY_TASK.get(version.task, (EMBEDDINGS,)) if path in BY_KIND[kind]]
        if route not in served:
            task = version.task or "no task that its config names"
            does = f"it serves {_listed(served)}" if served else f"this {kind} can't serve it"
            raise _unsupported(f"The adapter `{version.ref}` was trained for {task}; {does}.")


def _unsupported(message: str) -> APIError:
    return APIError(400, message, param="model", code="unsupported_task")


def _listed(routes: Sequence[str]) -> str:
    *most, last = routes
    return f"{', '.join(most)} and {last}" if most else last
