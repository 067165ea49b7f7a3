"""What a web page may not do to a server on its reader's machine or network.

A browser sends some requests to other origins without asking first (a form with an upload, for one), and a
page can point its own name at 127.0.0.1 after it was loaded (DNS rebinding), so that its requests count as
its own. Programs that are no browsers send none of the headers that are looked at here, save `Host`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import APIError
from server.settings import Settings

READING = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True)
class SameOrigin:
    """ASGI middleware: a 403 for a page of another origin that would change something, and for a name that is
    not this server's.
    """

    app: ASGIApp
    settings: Settings
    hosts: frozenset[str] | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hosts", allowed_hosts(self.settings))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await refusal.response()(scope, receive, send)

    def _refusal(self, scope: Scope) -> APIError | None:
        headers = {name: value.decode("latin-1").lower() for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self.hosts is not None and host and without_port(host) not in self.hosts:
            message = (
                f"This server is not called {without_port(host)[:100]!r}: ask it as localhost, or let its "
                "operator start it with --allow-host."
            )
            return APIError(403, message, code="host_not_allowed", headers={"connection": "close"})
        if scope["method"] not in READING and is_cross_site(
            headers.get(b"sec-fetch-site"), headers.get(b"origin"), host
        ):
            message = "A web page of another origin may not do this; send the request from a program."
            return APIError(403, message, code="cross_site_request", headers={"connection": "close"})
        return None


def allowed_hosts(settings: Settings) -> frozenset[str] | None:
    """The names in `Host` that are answered; None: any.

    A server that others may reach has names that it does not know, so there only `--allow-host` says so.
    """
    if not settings.allow_host and not _is_loopback(settings.host):
        return None
    bound = f"[{settings.host}]" if ":" in settings.host else settings.host
    return LOOPBACK | {bound.lower(), *settings.allow_host}


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def without_port(host: str) -> str:
    """`localhost` of `localhost:8000`, `[::1]` of `[::1]:8000`."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0].rstrip(".")


def is_cross_site(fetch_site: str | None, origin: str | None, host: str) -> bool:
    """Whether a browser says that a page of another origin sends this.

    `Sec-Fetch-Site` decides where there is one: it is right behind proxies that change `Host` too.
    """
    if fetch_site is not None:
        return fetch_site not in ("same-origin", "none")
    return origin is not None and origin.partition("://")[2] != host
