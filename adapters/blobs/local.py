"""Adapter files on disk, in one folder for each content digest.

    root/<digest>/adapter_config.json
    root/<digest>/adapter_model.safetensors
    root/<digest>/labels.json                 names of its head's outputs, if some were given
    root/<digest>/derived.safetensors         what follows from it and the base's weights, for some variants
    root/.incoming-*                          being written; swept at start

A folder appears under its digest by one rename of files that are already on disk, so that after a crash at
any instant it is there whole or not at all.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.checkpoint.labels import LABELS_FILE
from adapters.errors import AdapterNotFound, AdapterTooLarge, InvalidAdapter

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_INCOMING = ".incoming-"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """Blobs under `root`. Only one process may use a root at a time; `Registry` sees to it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(f"{_INCOMING}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        _sync(root.parent)

    def folder(self, digest: str) -> Path:
        """Where the blob lies, if it is there.

        Raises:
            AdapterNotFound: `digest` is not a digest, so that nothing else ever becomes a path.
        """
        if not _DIGEST.fullmatch(digest):
            raise AdapterNotFound(f"{digest[:100]!r} is not an adapter digest")
        return self._root / digest

    def digests(self) -> list[str]:
        """Every blob that is there."""
        return [entry.name for entry in self._root.iterdir() if _DIGEST.fullmatch(entry.name)]

    @contextmanager
    def stage(
        self, config: bytes, weights: Path, max_bytes: int, labels: bytes | None = None
    ) -> Iterator[Path]:
        """A private copy of the files, on disk to stay; gone at the end unless it was committed.

        The copy is what gets checked, so that nobody can change a file between its check and its use.

        Raises:
            AdapterTooLarge: the weights are over `max_bytes`.
            InvalidAdapter: the weights can't be read.
        """
        folder = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self._root))
        try:
            (folder / CONFIG_FILE).write_bytes(config)
            _copy(weights, folder / WEIGHTS_FILE, max_bytes)
            if labels is not None:
                (folder / LABELS_FILE).write_bytes(labels)
            for path in (*folder.iterdir(), folder):
                _sync(path)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, staged: Path, digest: str) -> None:
        """Make a staged copy the blob of `digest`; when this returns, it survives a crash.

        Files that are there already are replaced, which repairs a damaged blob. Old and new files with one
        digest are the same adapter, so a crash between two of them does no harm.
        """
        folder = self.folder(digest)
        if folder.is_dir():
            for path in staged.iterdir():
                os.replace(path, folder / path.name)
            _sync(folder)
        else:
            os.rename(staged, folder)
        _sync(self._root)

    def remove(self, digest: str) -> None:
        """Delete the blob, if it is there. Whoever has mapped or opened its files may go on reading them."""
        folder = self.folder(digest)
        if folder.is_dir():
            doomed = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self._root))
            os.rename(folder, doomed / digest)
            shutil.rmtree(doomed, ignore_errors=True)


def _copy(source: Path, target: Path, max_bytes: int) -> None:
    """Errors of the source are the publisher's; those of the target, such as a full disk, are ours."""
    try:
        if not source.is_file():  # opening a pipe would wait for ever
            raise InvalidAdapter("cannot read the weights: there is no such file")
        reader = source.open("rb")
    except OSError as error:
        raise InvalidAdapter(f"cannot read the weights: {error.strerror}") from None
    with reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        if size > max_bytes:
            raise AdapterTooLarge(f"the weights are {size} bytes; the limit is {max_bytes} bytes")
        shutil.copyfileobj(reader, writer, 1024**2)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
