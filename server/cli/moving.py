"""`multilora promote`, `rollback` and `canary`: what an alias means."""

from __future__ import annotations

import argparse

from server.cli.client import Json, path_of
from server.cli.listing import share
from server.cli.remote import (
    add_alias,
    add_expected,
    add_name,
    add_ref,
    add_remote,
    connect,
    show,
    whole,
)


def add_promote(parser: argparse.ArgumentParser) -> None:
    add_ref(parser, "the version: name@3 or name@other-alias")
    add_alias(parser)
    add_expected(parser)
    add_remote(parser, lambda arguments: _move(arguments, "promote", arguments.ref))


def add_rollback(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    add_alias(parser)
    add_expected(parser)
    add_remote(parser, lambda arguments: _move(arguments, "rollback", arguments.name))


def add_canary(parser: argparse.ArgumentParser) -> None:
    add_ref(parser, "the version: name@3 or name@other-alias")
    parser.add_argument("percent", metavar="PERCENT", type=percent, help="its share, 0 to 100")
    add_alias(parser)
    add_expected(parser)
    add_remote(
        parser, lambda arguments: _move(arguments, "canary", arguments.ref, {"percent": arguments.percent})
    )


def percent(text: str) -> int:
    """An argument from 0 to 100, with or without `%`."""
    share = whole(text.removesuffix("%"))
    if share > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 100 percent")
    return share


def as_text(alias: Json) -> str:
    """`legal@default: 3:90% 4:10%, revision 7`."""
    targets = " ".join(share(target["version"], target["percent"]) for target in alias["targets"])
    shadow = "" if alias["shadow"] is None else f", shadow {alias['shadow']}"
    return f"{alias['id']}: {targets}{shadow}, revision {alias['revision']}"


def _move(arguments: argparse.Namespace, action: str, ref: str, more: Json | None = None) -> int:
    body: Json = {"alias": arguments.alias, **(more or {})}
    if arguments.expected is not None:
        body["expected_revision"] = arguments.expected
    with connect(arguments) as client:
        alias = client.post(path_of("adapters", ref, action), body)
    show(arguments, alias, lambda: as_text(alias))
    return 0


VERBS = {"promote": add_promote, "rollback": add_rollback, "canary": add_canary}
