"""`multilora alias`: list, set and remove the aliases of an adapter."""

from __future__ import annotations

import argparse
from typing import Any

from server.cli.client import Json, path_of
from server.cli.moving import as_text, percent
from server.cli.remote import add_expected, add_name, add_remote, alias_name, connect, show, whole
from server.cli.showing import ALIAS_HEADER, alias_row
from server.cli.text import table


def add_alias(parser: argparse.ArgumentParser) -> None:
    verbs: Any = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    ls = verbs.add_parser("ls", help="list the aliases", allow_abbrev=False)
    add_name(ls)
    add_remote(ls, list_aliases)
    put = verbs.add_parser("set", help="make or move an alias", allow_abbrev=False)
    add_name(put)
    put.add_argument("alias", metavar="ALIAS", type=alias_name)
    put.add_argument(
        "targets",
        metavar="VERSION[:PERCENT]",
        nargs="+",
        type=target,
        help="a version, or several whose percents add up to 100, such as 3:90 4:10",
    )
    put.add_argument("--shadow", metavar="VERSION", type=whole, help="gets copies of the requests")
    add_expected(put)
    add_remote(put, set_alias)
    rm = verbs.add_parser("rm", help="remove an alias; the versions stay", allow_abbrev=False)
    add_name(rm)
    rm.add_argument("alias", metavar="ALIAS", type=alias_name)
    add_expected(rm)
    add_remote(rm, remove_alias)


def target(text: str) -> Json:
    """An argument such as `3` or `3:90`."""
    version, colon, share = text.partition(":")
    return {"version": whole(version), "percent": percent(share) if colon else 100}


def list_aliases(arguments: argparse.Namespace) -> int:
    """Print all aliases of the adapter."""
    with connect(arguments) as client:
        found = client.get(path_of("adapters", arguments.name, "aliases"))
    rows = (alias_row(alias, alias["alias"]) for alias in found["data"])
    show(arguments, found, lambda: table(ALIAS_HEADER, rows))
    return 0


def set_alias(arguments: argparse.Namespace) -> int:
    """Make or move the alias, and print it."""
    body = {"targets": arguments.targets, "shadow": arguments.shadow}
    if arguments.expected is not None:
        body["expected_revision"] = arguments.expected
    with connect(arguments) as client:
        alias = client.put(path_of("adapters", arguments.name, "aliases", arguments.alias), body)
    show(arguments, alias, lambda: as_text(alias))
    return 0


def remove_alias(arguments: argparse.Namespace) -> int:
    """Remove the alias."""
    path = path_of("adapters", arguments.name, "aliases", arguments.alias)
    with connect(arguments) as client:
        answer = client.delete(path, expected_revision=arguments.expected)
    show(arguments, answer, lambda: f"removed {answer['id']}")
    return 0


VERBS = {"alias": add_alias}
