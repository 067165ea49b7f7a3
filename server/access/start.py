"""Whether a server may start without keys: only where no other machine can reach it."""

from __future__ import annotations

from ipaddress import ip_address

from adapters.registry.identity import SQLITE_FILE
from server.access.principal import Access
from server.settings import Settings


class Unprotected(Exception):
    """Others could reach a server that asks nobody for a key; says in one line what to do."""


def check_start(access: Access, host: str) -> str | None:
    """A line to show if the server has no keys; None if it has.

    Raises:
        Unprotected: it has none, and `host` is not a loopback address.
    """
    if access.required:
        return None
    if is_loopback(host):
        return f"no API keys: whoever can connect to {host} may do everything (docs/tenants.md)"
    raise _unprotected(host)


def check_early(settings: Settings) -> None:
    """The same, before a base is loaded, where it is plain that there can't be any key.

    Raises:
        Unprotected: as `check_start`.
    """
    stored = settings.database_url is not None or (settings.data_dir / SQLITE_FILE).exists()
    if settings.admin_key is None and not stored and not is_loopback(settings.host):
        raise _unprotected(settings.host)


def _unprotected(host: str) -> Unprotected:
    return Unprotected(
        f"--host {host} can be reached by others and there are no API keys: make one with `multilora keys "
        "create --scope operator` and the server's --data-dir or --database-url, set MULTILORA_ADMIN_KEY, or "
        "listen on 127.0.0.1"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a server that listens on `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
