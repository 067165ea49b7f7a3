"""`multilora show`: all that is known of one version."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from server.cli.client import Client, Json, exact, path_of
from server.cli.listing import share
from server.cli.remote import add_ref, add_remote, connect, show
from server.cli.text import as_size, as_time, clean, fields, table

LIVE = ("ready", "deprecated")


def add_show(parser: argparse.ArgumentParser) -> None:
    add_ref(parser)
    add_remote(parser, run)


def run(arguments: argparse.Namespace) -> int:
    """Print the version, the aliases of its adapter with their history, and what it was trained from."""
    with connect(arguments) as client:
        adapter = client.get(path_of("adapters", arguments.ref))
        found = {"adapter": adapter, **_around(client, adapter)}
    show(arguments, found, lambda: as_text(found))
    return 0


def _around(client: Client, adapter: Json) -> Json:
    """`aliases`, each with its `history`, and `lineage`: the version itself, its parent and so on."""
    if adapter["state"] not in LIVE:
        return {"aliases": [], "lineage": []}
    # With its tenant: a bare name would be the caller's own.
    name = f"{adapter['tenant']}/{adapter['name']}"
    aliases = client.get(path_of("adapters", name, "aliases"))["data"]
    for alias in aliases:
        history = client.get(path_of("adapters", name, "aliases", alias["alias"], "history"))
        alias["history"] = history["data"]
    lineage = client.get(path_of("adapters", exact(adapter), "lineage"))
    return {"aliases": aliases, "lineage": lineage["data"]}


def as_text(found: Json) -> str:
    """Blocks of lines."""
    blocks = [_version(found["adapter"]), _aliases(found["aliases"]), _origin(found)]
    return "\n\n".join(block for block in blocks if block)


def _version(adapter: Json) -> str:
    proof = adapter["proof"]
    shown = ", ".join(f"{name} {value}" for name, value in proof.items() if value not in (None, "", [], ()))
    return fields(
        [
            ("id", adapter["id"]),
            ("tenant", adapter["tenant"]),
            ("state", adapter["state"]),
            ("reason", adapter["reason"]),
            ("where", adapter["tier"]),
            ("kept", adapter["desired"]),
            ("digest", adapter["digest"]),
            ("base", f"{adapter['base']} ({adapter['base_digest'][:12]})"),
            ("created", as_time(adapter["created"])),
            ("source", adapter["source"]),
            ("variant", adapter["variant"]),
            ("task", adapter["task"]),
            ("labels", " ".join(adapter["labels"])),
            ("size", as_size(adapter["size"])),
            ("rank", adapter["rank"]),
            ("parameters", f"{adapter['parameters']:,}"),
            ("modules", " ".join(adapter["target_modules"])),
            ("trained on", adapter["trained_on_quantization"]),
            ("proof", shown),
            *(("warning", warning) for warning in adapter["warnings"]),
            ("versions", " ".join(ref.rpartition("@")[2] for ref in adapter.get("versions", []))),
        ]
    )


def _aliases(aliases: Iterable[Json]) -> str:
    """A line for each alias, and below it what it was before, newest first."""
    rows = []
    for alias in aliases:
        rows.append(alias_row(alias, alias["alias"]))
        rows += [
            alias_row(before, "  before")
            for before in alias["history"]
            if before["revision"] != alias["revision"]
        ]
    return table(ALIAS_HEADER, rows) if rows else ""


ALIAS_HEADER = ("ALIAS", "VERSIONS", "SHADOW", "REVISION", "UPDATED", "BY")


def alias_row(alias: Json, name: str) -> tuple[object, ...]:
    """One alias, as `name`."""
    targets = " ".join(share(target["version"], target["percent"]) for target in alias["targets"])
    return name, targets, alias["shadow"], alias["revision"], as_time(alias["updated"]), alias["actor"]


def _origin(found: Json) -> str:
    lineage = found["adapter"]["lineage"]
    ancestors = [version["id"] for version in found["lineage"][1:]]
    return fields(
        [
            ("parent", lineage["parent"]),
            ("parent digest", lineage["parent_digest"]),
            ("ancestors", " < ".join(ancestors)),
            ("job", lineage["job"]),
            *(("data", f"{file['name']} {file['sha256']}") for file in lineage["data"]),
            *(("score", f"{clean(name)} {value:g}") for name, value in lineage["scores"].items()),
        ]
    )


VERBS = {"show": add_show}
