"""`multilora export`: the base with an adapter merged, as a plain model folder that any tool loads."""

from __future__ import annotations

import argparse
import io
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from server.cli.client import path_of
from server.cli.exits import Failed
from server.cli.folders import check_free, written
from server.cli.progress import Progress
from server.cli.remote import add_ref, add_remote, connect, show


def add_export(parser: argparse.ArgumentParser) -> None:
    add_ref(parser)
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="to be written; must not exist or be empty"
    )
    add_remote(parser, export)


def export(arguments: argparse.Namespace) -> int:
    """Have the server merge it, and unpack what it sends."""
    check_free(arguments.folder)
    with connect(arguments) as client, written(arguments.folder) as folder:

        def unpack(pieces: Iterator[bytes], headers: Mapping[str, str]) -> str:
            shutil.rmtree(folder)  # what a broken attempt left
            folder.mkdir()
            length = headers.get("content-length", "")
            with Progress(int(length) if length.isdecimal() else None, "exporting") as progress:
                _unpack(_Stream(pieces, progress), folder)
            return headers.get("x-adapter", arguments.ref)

        ref = client.download(path_of("adapters", arguments.ref, "merged"), unpack)
    answer = {"id": ref, "object": "adapter.merged", "folder": str(arguments.folder)}
    show(arguments, answer, lambda: f"wrote {ref} merged into its base to {arguments.folder}")
    return 0


def _unpack(stream: _Stream, folder: Path) -> None:
    """Write the plain files of an archive below `folder`, without the one folder that they all lie in.

    Raises:
        Failed: the archive is damaged, or names anything else.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=1024**2) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isreg() else None
                if content is not None:
                    target = folder.joinpath(*_parts(member.name))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("xb") as output:
                        shutil.copyfileobj(content, output, 1024**2)
                elif not member.isdir():
                    raise Failed(f"the archive holds {member.name!r}, which is no plain file")
        stream.drain()
    except (tarfile.TarError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise Failed(f"the server's archive can't be unpacked: {error}") from None
    if not any(folder.iterdir()):
        raise Failed("the server's archive is empty")


def _parts(name: str) -> tuple[str, ...]:
    """The path below the archive's one folder.

    Raises:
        Failed: it could lead out of the folder that is written.
    """
    parts = PurePosixPath(name).parts
    if len(parts) < 2 or any(part in ("/", "..") or "\0" in part for part in parts):
        raise Failed(f"the archive holds {name!r}, which is no path below one folder")
    return parts[1:]


class _Stream(io.RawIOBase):
    """Pieces as a file to be read once."""

    def __init__(self, pieces: Iterator[bytes], progress: Progress) -> None:
        self._pieces, self._progress = pieces, progress
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, b"")
            if not piece:
                return 0
            self._rest = memoryview(piece)
            self._progress.add(len(piece))
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def drain(self) -> None:
        """Read to the end: only there it shows that nothing is missing."""
        for _ in self._pieces:
            pass


VERBS = {"export": add_export}
