"""`multilora push`: publish an adapter from a folder or the hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.cli.client import Client, Json, Readable, exact, path_of
from server.cli.exits import Failed
from server.cli.files import Adapter, read_adapter, sha256_of
from server.cli.hub import HUB, fetch
from server.cli.progress import Counted, Progress
from server.cli.remote import add_name, add_remote, connect, reference, show
from server.cli.text import as_size


def add_push(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder that PEFT saved, or hf:owner/repo[@revision], which this command downloads",
    )
    promote = parser.add_mutually_exclusive_group()
    promote.add_argument(
        "--promote",
        action="store_true",
        help="let the name mean it, even if it does not mean the newest version now",
    )
    promote.add_argument(
        "--no-promote",
        action="store_true",
        help="leave the name where it is",
    )
    parser.add_argument(
        "--lineage",
        metavar="FILE",
        type=Path,
        help="JSON about its origin (default: the folder's lineage.json)",
    )
    parser.add_argument("--parent", metavar="REF", type=reference, help="the version its training began with")
    later = parser.add_mutually_exclusive_group()
    later.add_argument("--no-wait", action="store_true", help="return before the server has checked it")
    later.add_argument("--pin", action="store_true", help="keep it in memory from now on")
    add_remote(parser, push)


def push(arguments: argparse.Namespace) -> int:
    """Check the files, send them, and print the version that they became."""
    hub = arguments.source.startswith(HUB)
    folder = fetch(arguments.source) if hub else Path(arguments.source)
    adapter = read_adapter(folder, arguments.lineage, arguments.parent)
    with connect(arguments) as client:
        status, version = _send(client, arguments, adapter)
        if arguments.pin:
            version = client.post(path_of("adapters", exact(version), "pin"))
    show(arguments, version, lambda: as_text(status, version))
    return 0


def as_text(status: int, version: Json) -> str:
    """What became of it, and what the server has to say about it."""
    if status == 202:
        return f"{version['id']} is uploaded; `multilora show {version['id']}` tells how its check went"
    done = "published" if status == 201 else "is the newest version and has these files already"
    led = ", ".join(sorted(version["aliases"])) or "no alias"
    facts = f"rank {version['rank']}, {as_size(version['size'])}, {version['proof']['status']}, {led}"
    return "\n".join(
        [f"{version['id']} {done}: {facts}", *(f"warning: {text}" for text in version["warnings"])]
    )


def _send(client: Client, arguments: argparse.Namespace, adapter: Adapter) -> tuple[int, Json]:
    """The upload's status and answer."""
    parts = {
        "name": arguments.name,
        "promote": "yes" if arguments.promote else "no" if arguments.no_promote else "auto",
        **adapter.parts,
    }
    try:
        with adapter.config.open("rb") as config, adapter.weights.open("rb") as weights:
            parts["sha256"] = sha256_of(weights)
            weights.seek(0)
            size = adapter.weights.stat().st_size
            with Progress(size, "uploading") as progress:
                files: list[tuple[str, Readable]] = [
                    ("config", config),
                    ("weights", Counted(weights, progress)),
                ]
                return client.upload(
                    path_of("adapters"), parts, files, wait="false" if arguments.no_wait else None
                )
    except OSError as error:
        raise Failed(f"{error.filename or adapter.weights}: {error.strerror}") from None


VERBS = {"push": add_push}
