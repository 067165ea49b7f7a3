"""`multilora files`: training files on the server."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from server.cli.client import Client, Json, path_of
from server.cli.exits import Failed
from server.cli.keys import duration
from server.cli.progress import Counted, Progress
from server.cli.remote import add_remote, connect, show
from server.cli.text import as_size, as_time, table

HEADER = ("FILE", "NAME", "PURPOSE", "SIZE", "CREATED", "EXPIRES")


def add_files(parser: argparse.ArgumentParser) -> None:
    verbs: Any = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    put = verbs.add_parser("put", help="store a file to train on", allow_abbrev=False)
    put.add_argument("file", metavar="FILE", type=Path, help="JSON lines with the examples")
    put.add_argument(
        "--expires", metavar="TIME", type=duration, help="in how long it goes: 12h, 30d (default: never)"
    )
    add_remote(put, put_file)
    ls = verbs.add_parser("ls", help="list the files, newest first", allow_abbrev=False)
    add_remote(ls, list_files)
    get = verbs.add_parser("get", help="write the content of a file", allow_abbrev=False)
    add_file_id(get)
    get.add_argument("--output", metavar="FILE", type=Path, help="where to (default: stdout)")
    add_remote(get, get_content)
    rm = verbs.add_parser("rm", help="delete a file that no job needs any more", allow_abbrev=False)
    add_file_id(rm)
    add_remote(rm, remove_file)


def add_file_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="FILE", type=file_id, help="its id, which files ls shows")


def file_id(text: str) -> str:
    """An argument that is a file's id."""
    if not is_file_id(text):
        raise argparse.ArgumentTypeError("takes an id such as file-0123456789abcdef01234567")
    return text


def is_file_id(text: str) -> bool:
    return re.fullmatch(r"file-[0-9a-f]{24}", text) is not None


def send(client: Client, path: Path, expires: int | None = None) -> Json:
    """Store the file at `path`; the server's answer.

    Raises:
        Failed: it can't be read, or was refused.
    """
    parts: Json = {"purpose": "fine-tune"}
    if expires is not None:
        parts |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(expires)}
    try:
        with path.open("rb") as file, Progress(path.stat().st_size, "uploading") as progress:
            return client.upload(
                path_of("files"), parts, [("file", Counted(file, progress))], filename=path.name
            )[1]
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None


def put_file(arguments: argparse.Namespace) -> int:
    """Print the new file's id."""
    with connect(arguments) as client:
        file = send(client, arguments.file, arguments.expires)
    show(arguments, file, lambda: str(file["id"]))
    return 0


def list_files(arguments: argparse.Namespace) -> int:
    """Print the files."""
    with connect(arguments) as client:
        found = client.pages(path_of("files"))
    rows = (
        (
            file["id"],
            file["filename"],
            file["purpose"],
            as_size(file["bytes"]),
            as_time(file["created_at"]),
            "never" if file["expires_at"] is None else as_time(file["expires_at"]),
        )
        for file in found
    )
    show(arguments, {"object": "list", "data": found}, lambda: table(HEADER, rows))
    return 0


def get_content(arguments: argparse.Namespace) -> int:
    """Write the content, whole or not at all; with `--json` what is known of the file."""
    with connect(arguments) as client:
        if arguments.json:
            show(arguments, client.get(path_of("files", arguments.id)), str)
            return 0
        path = path_of("files", arguments.id, "content")
        if arguments.output is None:
            client.download(path, _to_stdout)
            return 0
        part = arguments.output.with_name(f"{arguments.output.name}.part")

        def write(pieces: Iterator[bytes], headers: Mapping[str, str]) -> None:
            with part.open("wb") as file:
                file.writelines(pieces)

        try:
            client.download(path, write)
            shutil.move(part, arguments.output)
        except OSError as error:
            raise Failed(f"{arguments.output}: {error.strerror}") from None
        finally:
            part.unlink(missing_ok=True)
    return 0


def remove_file(arguments: argparse.Namespace) -> int:
    """Delete the file."""
    with connect(arguments) as client:
        answer = client.delete(path_of("files", arguments.id))
    show(arguments, answer, lambda: f"deleted {answer['id']}")
    return 0


def _to_stdout(pieces: Iterator[bytes], headers: Mapping[str, str]) -> None:
    for piece in pieces:
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


VERBS = {"files": add_files}
