"""`multilora pull`: write a version as a folder that PEFT loads, verified byte for byte."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from server.cli.client import Client, Json, exact, path_of
from server.cli.exits import Exit, Failed
from server.cli.files import CONFIG_FILE, LABELS_FILE, LINEAGE_FILE, WEIGHTS_FILE
from server.cli.folders import check_free, written
from server.cli.progress import Progress
from server.cli.remote import add_ref, add_remote, connect, show
from server.cli.text import as_size

FILES = (CONFIG_FILE, WEIGHTS_FILE, LABELS_FILE, LINEAGE_FILE)
OPTIONAL = (LABELS_FILE,)
REPLACEABLE = (*FILES, "README.md")
"""What may stand in a folder that `--force` replaces; PEFT writes the last."""


def add_pull(parser: argparse.ArgumentParser) -> None:
    add_ref(parser)
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="to be written; must not exist or be empty"
    )
    parser.add_argument("--force", action="store_true", help="replace a folder that holds an adapter")
    add_remote(parser, pull)


def pull(arguments: argparse.Namespace) -> int:
    """Fetch the files of one version, whatever its alias does meanwhile."""
    replaceable = REPLACEABLE if arguments.force else ()
    check_free(arguments.folder, replaceable)
    with connect(arguments) as client:
        version = client.get(path_of("adapters", arguments.ref))
        with written(arguments.folder, replaceable) as folder:
            for file in FILES:
                _fetch(client, version, file, folder / file)
    done = f"wrote {version['id']} to {arguments.folder}: rank {version['rank']}, {as_size(version['size'])}"
    show(arguments, {**version, "folder": str(arguments.folder)}, lambda: done)
    return 0


def _fetch(client: Client, version: Json, file: str, target: Path) -> None:
    """One file, unless it is one that not every adapter has."""

    def write(pieces: Iterator[bytes], headers: Mapping[str, str]) -> None:
        found = hashlib.sha256()
        length = headers.get("content-length", "")
        total = int(length) if length.isdecimal() else None
        with target.open("wb") as output, Progress(total, file) as progress:
            for piece in pieces:
                found.update(piece)
                output.write(piece)
                progress.add(len(piece))
        stated = headers.get("x-sha256")
        if stated != found.hexdigest():
            said = f"has sha256 {found.hexdigest()}, and the server says {stated or 'nothing of it'}"
            raise Failed(f"{file} of {version['id']} arrived damaged: it {said}", passing=True)

    try:
        client.download(path_of("adapters", exact(version), "files", file), write)
    except Failed as error:
        if error.code != Exit.NOT_FOUND or file not in OPTIONAL:
            raise


VERBS = {"pull": add_pull}
