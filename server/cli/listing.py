"""`multilora ls`: the adapters that can be asked, one line for each, or for each version of one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from server.cli.client import Json, path_of
from server.cli.remote import adapter_name, add_remote, connect, show
from server.cli.text import as_numbers, as_size, as_time, table

HEADER = ("NAME", "VERSIONS", "DEFAULT", "ALIASES", "STATE", "RANK", "SIZE", "WHERE")
VERSION_HEADER = ("VERSION", "STATE", "ALIASES", "RANK", "SIZE", "WHERE", "CREATED", "DIGEST")
DEFAULT_ALIAS = "default"


def add_ls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", type=adapter_name, help="list the versions of this adapter"
    )
    parser.add_argument(
        "--all", action="store_true", help="also what is being checked, was refused or was deleted"
    )
    add_remote(parser, ls)


def ls(arguments: argparse.Namespace) -> int:
    """Print the list."""
    with connect(arguments) as client:
        if arguments.name:
            client.get(path_of("adapters", arguments.name))  # no such adapter is an error, and no empty list
        found = client.pages(path_of("adapters"), name=arguments.name, all=arguments.all or None)
    text = as_versions if arguments.name else as_adapters
    show(arguments, {"object": "list", "data": found}, lambda: text(found))
    return 0


def as_adapters(found: Sequence[Json]) -> str:
    """A line for each adapter. Rank, size and where it is are those of what its name means."""
    groups: dict[tuple[str, str], list[Json]] = {}
    for version in found:
        groups.setdefault((version["tenant"], version["name"]), []).append(version)
    several = len({tenant for tenant, _ in groups}) > 1
    rows = []
    for (tenant, name), versions in groups.items():
        meant = max(
            versions, key=lambda version: (version["aliases"].get(DEFAULT_ALIAS, 0), version["version"])
        )
        shown = f"{tenant}/{name}" if several or "/" in meant["id"] else name
        aliases = _aliases(versions)
        default = aliases.pop(DEFAULT_ALIAS, "")
        others = " ".join(f"{alias}={targets}" for alias, targets in sorted(aliases.items()))
        numbers = as_numbers(version["version"] for version in versions)
        where = _where(meant)
        rows.append(
            (shown, numbers, default, others, _states(versions), meant["rank"], as_size(meant["size"]), where)
        )
    return table(HEADER, rows)


def as_versions(found: Sequence[Json]) -> str:
    """A line for each version."""
    return table(
        VERSION_HEADER,
        (
            (
                version["version"],
                version["state"],
                " ".join(share(alias, percent) for alias, percent in sorted(version["aliases"].items())),
                version["rank"],
                as_size(version["size"]),
                _where(version),
                as_time(version["created"]),
                version["digest"][:12],
            )
            for version in found
        ),
    )


def share(name: object, percent: int) -> str:
    """`name`, with its percentage unless that is everything."""
    return str(name) if percent == 100 else f"{name}:{percent}%"


def _aliases(versions: Sequence[Json]) -> dict[str, str]:
    """What each alias means: `3`, or `3:90%,4:10%`."""
    aliases: dict[str, list[str]] = {}
    for version in versions:
        for alias, percent in version["aliases"].items():
            aliases.setdefault(alias, []).append(share(version["version"], percent))
    return {alias: ",".join(targets) for alias, targets in aliases.items()}


def _states(versions: Sequence[Json]) -> str:
    """The state of all, or of which."""
    states: dict[str, list[int]] = {}
    for version in versions:
        states.setdefault(version["state"], []).append(version["version"])
    if len(states) == 1:
        return next(iter(states))
    return " ".join(f"{state}:{as_numbers(numbers)}" for state, numbers in states.items())


def _where(version: Json) -> str:
    """The fastest memory that has it, and what it is to stay in."""
    return " ".join(word for word in (version["tier"], version["desired"]) if word)


VERBS = {"ls": add_ls}
