"""`multilora share` and `unshare`: which other tenants may use an adapter."""

from __future__ import annotations

import argparse

from server.cli.client import Json, path_of
from server.cli.remote import add_name, add_remote, connect, show, tenant_name


def add_share(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument(
        "tenant",
        metavar="TENANT",
        nargs="?",
        type=other_tenant,
        help="who may use it from now on; '*' is everybody; without it: list who may",
    )
    add_remote(parser, share)


def add_unshare(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument("tenant", metavar="TENANT", type=other_tenant, help="who may not any more")
    add_remote(parser, unshare)


def other_tenant(text: str) -> str:
    """An argument that is a tenant, or `*`."""
    return text if text == "*" else tenant_name(text)


def share(arguments: argparse.Namespace) -> int:
    """Share it, and print with whom it is shared then."""
    with connect(arguments) as client:
        if arguments.tenant is None:
            answer = client.get(path_of("adapters", arguments.name, "shares"))
        else:
            answer = client.put(path_of("adapters", arguments.name, "shares", arguments.tenant))
    show(arguments, answer, lambda: as_text(answer))
    return 0


def unshare(arguments: argparse.Namespace) -> int:
    """Take a share back, and print what is left."""
    with connect(arguments) as client:
        answer = client.delete(path_of("adapters", arguments.name, "shares", arguments.tenant))
    show(arguments, answer, lambda: as_text(answer))
    return 0


def as_text(answer: Json) -> str:
    """Whom the adapter is shared with."""
    tenants = " ".join("everybody" if tenant == "*" else tenant for tenant in answer["tenants"])
    return f"{answer['name']} is shared with {tenants or 'nobody'}"


VERBS = {"share": add_share, "unshare": add_unshare}
