"""`multilora keys`: create, list and revoke API keys; the first one also without a server."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from server.cli.client import Json, path_of
from server.cli.remote import add_remote, connect, show, tenant_name
from server.cli.text import as_time, table

SCOPES = ("use", "publish", "admin", "metrics", "operator")
HEADER = ("ID", "TENANT", "NAME", "SCOPES", "STATE", "CREATED", "EXPIRES")
MAX_NAME = 100
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_keys(parser: argparse.ArgumentParser) -> None:
    verbs: Any = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_create(verbs.add_parser("create", help="make a key; its secret is shown once", allow_abbrev=False))
    ls = verbs.add_parser("ls", help="list the keys, without their secrets", allow_abbrev=False)
    ls.add_argument("--tenant", type=tenant_name, help="only those of this tenant")
    add_remote(ls, list_keys)
    revoke = verbs.add_parser("revoke", help="end a key", allow_abbrev=False)
    revoke.add_argument("id", metavar="ID", type=key_id, help="as keys ls shows it: key-0123456789ab")
    add_remote(revoke, revoke_key)


def _add_create(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make an API key. Its secret, which nobody can ask for again, is all that goes to stdout. The first "
        "key must have the scope operator; --data-dir and --database-url make one without a server."
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", default="unnamed", type=key_name, help="for people"
    )
    parser.add_argument(
        "--scope",
        action="append",
        required=True,
        choices=SCOPES,
        help="what it may do; repeat for more: use asks models, publish uploads and moves aliases, "
        "admin deletes, shares and manages keys, metrics reads /metrics, operator does everything for all",
    )
    parser.add_argument("--tenant", type=tenant_name, help="whose it is (default: that of the key in use)")
    parser.add_argument("--expires", metavar="TIME", type=duration, help="in how long: 90m, 12h, 30d")
    offline = parser.add_mutually_exclusive_group()
    offline.add_argument(
        "--data-dir", metavar="DIR", type=Path, help="of a stopped server, in place of asking one"
    )
    offline.add_argument(
        "--database-url", metavar="URL", help="of servers that run or not, in place of asking one"
    )
    add_remote(parser, create)


def duration(text: str) -> int:
    """An argument such as `30d`, in seconds."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90m, 12h or 30d")
    return int(match[1]) * _UNITS[match[2]]


def key_name(text: str) -> str:
    """An argument that names a key for people."""
    if not 0 < len(text) <= MAX_NAME or not text.isprintable():
        raise argparse.ArgumentTypeError(f"takes 1 to {MAX_NAME} printable characters")
    return text


def key_id(text: str) -> str:
    """An argument that is a key's id. A secret is none, and must not get into the logs of a server."""
    if re.fullmatch(r"key-[0-9a-f]{12}", text) is None:
        raise argparse.ArgumentTypeError("takes an id such as key-0123456789ab, which keys ls shows")
    return text


def create(arguments: argparse.Namespace) -> int:
    """Print the secret, and on stderr what it is good for."""
    body: Json = {"name": arguments.name, "scopes": arguments.scope}
    if arguments.tenant is not None:
        body["tenant"] = arguments.tenant
    if arguments.expires is not None:
        body["expires_in"] = arguments.expires
    if arguments.data_dir is not None or arguments.database_url is not None:
        from server.cli.first_key import create_key

        key = create_key(body, arguments.data_dir, arguments.database_url)
    else:
        with connect(arguments) as client:
            key = client.post(path_of("keys"), body)
    show(arguments, key, lambda: str(key["secret"]))
    until = "" if key["expires"] is None else f" until {as_time(key['expires'])}"
    scopes = ", ".join(key["scopes"])
    print(f"{key['id']} of tenant {key['tenant']}: {scopes}{until}. It is not shown again.", file=sys.stderr)
    if key.get("notice"):
        print(key["notice"], file=sys.stderr)
    return 0


def list_keys(arguments: argparse.Namespace) -> int:
    """Print the keys, oldest first."""
    with connect(arguments) as client:
        found = client.pages(path_of("keys"), tenant=arguments.tenant)
    rows = (
        (
            key["id"],
            key["tenant"],
            key["name"],
            ",".join(key["scopes"]),
            key["state"],
            as_time(key["created"]),
            "never" if key["expires"] is None else as_time(key["expires"]),
        )
        for key in found
    )
    show(arguments, {"object": "list", "data": found}, lambda: table(HEADER, rows))
    return 0


def revoke_key(arguments: argparse.Namespace) -> int:
    """End the key."""
    with connect(arguments) as client:
        key = client.delete(path_of("keys", arguments.id))
    show(arguments, key, lambda: f"revoked {key['id']}")
    return 0


VERBS = {"keys": add_keys}
