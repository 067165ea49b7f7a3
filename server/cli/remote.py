"""What the commands that talk to a server have in common: which server, which key, text or JSON."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from urllib.parse import urlsplit

from adapters.errors import InvalidName
from adapters.registry.names import check_alias, check_tenant, parse_ref
from server.cli.client import Client, Json
from server.cli.exits import Exit, Failed
from server.cli.text import as_json

SERVER_VARIABLE = "MULTILORA_SERVER"
KEY_VARIABLE = "MULTILORA_API_KEY"
DEFAULT_SERVER = "http://127.0.0.1:8000"
Verb = Callable[[argparse.ArgumentParser], None]


def add_remote(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    """Add the flags of a client, and what the command does."""
    group = parser.add_argument_group("server")
    group.add_argument("--server", metavar="URL", help=f"default: {SERVER_VARIABLE}, or {DEFAULT_SERVER}")
    group.add_argument("--key", help=f"API key (default: {KEY_VARIABLE}, which other users can't see)")
    parser.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    parser.set_defaults(run=run)


def add_ref(parser: argparse.ArgumentParser, text: str = "name, name@3, name@alias, tenant/name") -> None:
    """Add the reference to an adapter that most commands take."""
    parser.add_argument("ref", metavar="REF", type=reference, help=text)


def add_name(parser: argparse.ArgumentParser) -> None:
    """Add the name of an adapter, which is no version and no alias of it."""
    parser.add_argument("name", metavar="NAME", type=adapter_name, help="name or tenant/name")


def add_expected(parser: argparse.ArgumentParser) -> None:
    """Add the revision that an alias must still have."""
    parser.add_argument(
        "--expected",
        metavar="N",
        type=whole,
        help="do it only if the alias is at this revision, which show and alias ls tell; 0: is not there yet",
    )


def add_alias(parser: argparse.ArgumentParser) -> None:
    """Add the alias to move."""
    parser.add_argument("--alias", type=alias_name, default="default", help="which alias to move (default)")


def reference(text: str) -> str:
    """An argument that is a reference. What is none must not become part of a path."""
    return _checked(parse_ref, text)


def alias_name(text: str) -> str:
    """An argument that is an alias."""
    return _checked(check_alias, text)


def tenant_name(text: str) -> str:
    """An argument that is a tenant."""
    return _checked(check_tenant, text)


def _checked(check: Callable[[str], object], text: str) -> str:
    try:
        check(text)
    except InvalidName as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def adapter_name(text: str) -> str:
    """An argument that is `name` or `tenant/name`."""
    if "@" in reference(text):
        raise argparse.ArgumentTypeError(f"{text!r} names one version; leave out '@' and what follows it")
    return text


def whole(text: str) -> int:
    """An argument that is 0, 1, 2 and so on."""
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def connect(arguments: argparse.Namespace) -> Client:
    """A client of the server that flags and environment name.

    Raises:
        Failed: the URL or the key can't be one.
    """
    server = (arguments.server or os.environ.get(SERVER_VARIABLE) or DEFAULT_SERVER).rstrip("/")
    key = arguments.key or os.environ.get(KEY_VARIABLE) or None
    try:
        parts = urlsplit(server)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise Failed(f"--server: {server!r} is not a URL such as {DEFAULT_SERVER}", Exit.USAGE)
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise Failed("--key: holds a character that no key has", Exit.USAGE)
    return Client(server, key)


def show(arguments: argparse.Namespace, answer: Json, text: Callable[[], str]) -> None:
    """Print an answer as JSON if that was asked for, else as `text` has it."""
    said = as_json(answer) if arguments.json else text()
    if said:
        print(said)
