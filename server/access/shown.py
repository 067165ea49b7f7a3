"""Keys as the API and the command line show them."""

from __future__ import annotations

import time

from adapters.registry.records import Key


def key_object(key: Key) -> dict[str, object]:
    """A key as the API shows it; times are Unix times in seconds, or null."""
    return {
        "id": key.id,
        "object": "api_key",
        "tenant": key.tenant,
        "name": key.name,
        "scopes": list(key.scopes),
        "created": int(key.created),
        "expires": None if key.expires is None else int(key.expires),
        "revoked": None if key.revoked is None else int(key.revoked),
        "state": state(key),
    }


def state(key: Key) -> str:
    """`valid`, `expired` or `revoked`."""
    if key.revoked is not None:
        return "revoked"
    return "valid" if key.expires is None or key.expires > time.time() else "expired"
