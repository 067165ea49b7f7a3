"""Objects in a folder on a disk that several machines mount: `file:///mnt/adapters`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from adapters.blobs.local import INCOMING, sync
from adapters.errors import RegistryUnavailable


class SharedFolder:
    """`Objects` as files under `root`, which is made if it is not there. Symbolic links are not followed."""

    def __init__(self, root: Path) -> None:
        self.url = f"file://{root}"
        self._root = root
        with self._errors("open"):
            root.mkdir(parents=True, exist_ok=True)

    def create(self, key: str, source: Path | bytes) -> bool:
        with self._errors(key), self._written(key, source) as part:
            target = self._path(key)
            try:
                os.link(part, target)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                if target.exists():
                    return False
                os.rename(part, target)
            sync(target.parent)
            return True

    def put(self, key: str, source: Path | bytes) -> None:
        with self._errors(key), self._written(key, source) as part:
            target = self._path(key)
            os.replace(part, target)
            sync(target.parent)

    def read(self, key: str, start: int, size: int) -> bytes:
        with self._errors(key), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(size)

    def list(self, folder: str) -> Mapping[str, float]:
        found = {}
        with self._errors(folder):
            for place, _, names in os.walk(self._root / folder):
                for name in names:
                    path = Path(place, name)
                    with suppress(FileNotFoundError):
                        found[path.relative_to(self._root).as_posix()] = path.lstat().st_mtime
        return found

    def move(self, key: str, target: str) -> None:
        with self._errors(key):
            path, place = self._path(key), self._path(target)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
            sync(place.parent)
            self._prune(path.parent)

    def delete(self, key: str) -> None:
        with self._errors(key):
            path = self._path(key, may_be_link=True)
            path.unlink(missing_ok=True)
            self._prune(path.parent)

    def close(self) -> None:
        pass

    def _path(self, key: str, may_be_link: bool = False) -> Path:
        path = self._root
        for part in key.split("/"):
            path /= part
            if path.is_symlink() and not (may_be_link and path == self._root / key):
                raise RegistryUnavailable(f"{path} in the blob store is a symbolic link; remove it")
        return path

    @contextmanager
    def _written(self, key: str, source: Path | bytes) -> Iterator[Path]:
        """A file beside the one of `key`, on disk to stay; gone at the end unless it was renamed."""
        folder = self._path(key).parent
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{INCOMING}{uuid4().hex}"
        try:
            if isinstance(source, bytes):
                part.write_bytes(source)
            else:
                shutil.copyfile(source, part)
            sync(part)
            yield part
        finally:
            part.unlink(missing_ok=True)

    def _prune(self, folder: Path) -> None:
        """Remove folders that have become empty, up to the root."""
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise RegistryUnavailable(f"the blob store {self.url} failed ({what}): {reason}") from error
