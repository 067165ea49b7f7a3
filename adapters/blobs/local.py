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

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adapters.checkpoint.labels import LABELS_FILE
from adapters.errors import AdapterNotFound, AdapterTooLarge, InvalidAdapter

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
INCOMING = ".incoming-"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether it is a digest, so that nothing else ever becomes a path."""
    return _DIGEST.fullmatch(text) is not None


def check_digest(digest: str) -> None:
    """Raises AdapterNotFound for what is no digest, so that nothing else ever becomes a path."""
    if not is_digest(digest):
        raise AdapterNotFound(f"{digest[:100]!r} is not an adapter digest")


class BlobStore:
    """Blobs under `root`. Only one process may write to a root at a time; `Registry` sees to it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(f"{INCOMING}*"):
            _sweep(leftover)
        sync(root.parent)

    def folder(self, digest: str) -> Path:
        """Where the blob lies, if it is there.

        Raises:
            AdapterNotFound: `digest` is not a digest.
            InvalidAdapter: a symbolic link stands there.
        """
        check_digest(digest)
        folder = self._root / digest
        if folder.is_symlink():
            raise InvalidAdapter(f"stored adapter {digest[:12]} is a symbolic link, not a folder; remove it")
        return folder

    def has(self, digest: str) -> bool:
        """Whether the blob is there."""
        return self.folder(digest).is_dir()

    def check(self, digest: str) -> None:
        """That the blob holds plain files alone.

        Raises:
            InvalidAdapter: naming a file that leads elsewhere, or is none.
        """
        for entry in os.scandir(self.folder(digest)):
            if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                raise InvalidAdapter(f"{entry.name} of stored adapter {digest[:12]} is not a plain file")

    def size(self, digest: str) -> int:
        """Bytes of all its files; 0 if it is not there."""
        try:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(self.folder(digest)))
        except FileNotFoundError:
            return 0

    def digests(self) -> list[str]:
        """Every blob that is there."""
        return [entry.name for entry in os.scandir(self._root) if is_digest(entry.name) and _is_folder(entry)]

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
        with self.staging() as folder:
            (folder / CONFIG_FILE).write_bytes(config)
            _copy(weights, folder / WEIGHTS_FILE, max_bytes)
            if labels is not None:
                (folder / LABELS_FILE).write_bytes(labels)
            for path in (*folder.iterdir(), folder):
                sync(path)
            yield folder

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty private folder that may be committed; gone at the end."""
        folder = Path(tempfile.mkdtemp(prefix=INCOMING, dir=self._root))
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # tells another process that starts: this is no leftover
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)

    def commit(self, staged: Path, digest: str) -> None:
        """Make a staged copy the blob of `digest`; when this returns, it survives a crash.

        Files that are there already are replaced, which repairs a damaged blob. Old and new files with one
        digest are the same adapter, so a crash between two of them does no harm.
        """
        folder = self.folder(digest)
        if folder.is_dir():
            for path in staged.iterdir():
                os.replace(path, folder / path.name)
            sync(folder)
        else:
            os.rename(staged, folder)
        sync(self._root)

    def remove(self, digest: str) -> None:
        """Delete the blob, if it is there. Whoever has mapped or opened its files may go on reading them."""
        check_digest(digest)
        path = self._root / digest
        if path.is_symlink():
            path.unlink()
        elif path.is_dir():
            doomed = Path(tempfile.mkdtemp(prefix=INCOMING, dir=self._root))
            os.rename(path, doomed / digest)
            shutil.rmtree(doomed, ignore_errors=True)

    def set_aside(self, digest: str, target: Path) -> None:
        """Move the blob, or what stands in its place, to `target`, if it is there."""
        check_digest(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            os.rename(self._root / digest, target)
        sync(self._root)
        sync(target.parent)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(leftover: Path) -> None:
    """Remove a staged folder unless a living process holds it."""
    try:
        handle = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(leftover, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(handle)


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
