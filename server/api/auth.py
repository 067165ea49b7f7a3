"""Who may call a route: checked before anything of the request is read, and refused where no rule says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.routing import iter_route_contexts
from starlette.datastructures import MutableHeaders
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.registry.records import Caller
from server.access.budgets import Tokens
from server.access.principal import Principal
from server.access.rules import find_rule
from server.api.context import ServerContext
from server.api.errors import APIError

_STATE = "principal"


class Gate:
    """ASGI middleware: a 401 for who is not known, a 403 for who may not call the route.

    It finds the route as the router does, in the same order, so that what it checks is what will run. A path
    without a route passes once its caller is known: the router's answer is a 404, or a 405.

    Args:
        routes: those of the application, complete by the first request.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], context: ServerContext) -> None:
        self._app, self._context = app, context
        self._routes = cache(lambda: list(iter_route_contexts(routes)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        if scope["type"] == "http":
            try:
                principal = self._admit(scope)
            except APIError as error:
                await error.response()(scope, receive, send)
                return
            if principal is not None:
                scope.setdefault("state", {})[_STATE] = principal
                send = self._with_tokens(principal.caller.tenant, send)
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> Principal | None:
        """Who calls; None: nobody asked, as the route is public."""
        template = self._template(scope)
        rule = None if template is None else find_rule(scope["method"], template)
        if rule == "public":
            return None
        secret = credential(scope)
        principal = self._context.access.identify(secret)
        if principal is None:
            self._context.metrics.refused_keys.labels("missing" if secret is None else "invalid").inc()
            raise unauthorized(secret is not None)
        if template is not None and rule is None:
            raise APIError(403, "No rule opens this route to anyone.", code="no_rule")
        if rule is not None and not principal.may(rule):
            raise insufficient_scope(rule)
        return principal

    def _template(self, scope: Scope) -> str | None:
        """The path template of the route that will answer."""
        for route in self._routes():
            match, _ = route.matches(scope)
            if match is Match.FULL:
                return str(route.path)
        return None

    def _with_tokens(self, tenant: str, send: Send) -> Send:
        """`send`, with OpenAI's headers on the answers of a tenant whose tokens are limited."""
        budgets = self._context.budgets
        if budgets.tokens(tenant) is None:
            return send

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start" and (state := budgets.tokens(tenant)) is not None:
                MutableHeaders(scope=message).update(token_headers(state))
            await send(message)

        return counted


def credential(scope: Scope) -> str | None:
    """The secret in `Authorization: Bearer` or `X-API-Key`, in this order; None: there is none."""
    found: dict[bytes, str] = {name: value.decode("latin-1").strip() for name, value in scope["headers"]}
    kind, _, token = found.get(b"authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    return found.get(b"x-api-key") or None


def token_headers(state: Tokens) -> dict[str, str]:
    """As OpenAI names and writes them."""
    return {
        "x-ratelimit-limit-tokens": str(state.limit),
        "x-ratelimit-remaining-tokens": str(state.remaining),
        "x-ratelimit-reset-tokens": duration(state.reset),
    }


def duration(seconds: float) -> str:
    """`120ms`, `8.64s` or `6m0s`, rounded up."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 100) / 100:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"


def unauthorized(given: bool) -> APIError:
    """The same for a key that never was, one that expired and one that was revoked."""
    if given:
        message = "Incorrect API key provided."
    else:
        message = "No API key provided: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`."
    return APIError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def insufficient_scope(scope: str, why: str = "which this route takes") -> APIError:
    """The key is good, but not for this."""
    return APIError(
        403,
        f"This API key lacks the scope `{scope}`, {why}.",
        code="insufficient_scope",
        headers={"www-authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
    )


async def get_principal(request: Request) -> Principal:
    """Who sent this request; only for routes that are not public."""
    return cast(Principal, request.scope["state"][_STATE])


async def get_caller(request: Request) -> Caller:
    """The same, as the registry wants to know it."""
    return (await get_principal(request)).caller


CurrentCaller = Annotated[Caller, Depends(get_caller)]
CurrentPrincipal = Annotated[Principal, Depends(get_principal)]
