"""The environment of processes that the server starts: they need none of its secrets."""

from __future__ import annotations

import os

_SECRETS = frozenset({"MULTILORA_ADMIN_KEY", "MULTILORA_API_KEY", "MULTILORA_DATABASE_URL", "PGPASSWORD"})
_SECRET_FAMILIES = ("AWS_",)


def child_environment(**more: str) -> dict[str, str]:
    """This process's variables save keys, passwords and cloud credentials, and `more`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _SECRETS and not name.startswith(_SECRET_FAMILIES)
    }
    return kept | more
