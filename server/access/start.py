"""Whether a server may start without keys: only where no other machine can reach it."""

from __future__ import annotations

from ipaddress import ip_address

from server.access.principal import Access


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
    raise Unprotected(
        f"--host {host} can be reached by others and there are no API keys: make one with `multilora keys "
        "create --scope operator`, set MULTILORA_ADMIN_KEY, or listen on 127.0.0.1"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a server that listens on `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
