"""Blobs shared by several servers, in a bucket or on a shared disk.

    <url>/<digest>/manifest.json                            which files there are; written last, removed first
    <url>/<digest>/<edition>/adapter_config.json            the edition is named after the bytes of its files
    <url>/<digest>/<edition>/adapter_model.safetensors
    <url>/<digest>/<edition>/labels.json
    <url>/quarantine/<digest>-<time>/...                    what did not match, kept for the operator

Two servers may publish one digest at a time, from files that compute the same but differ in their bytes. As
each edition has a folder of its own, and whoever writes to it writes the same bytes, neither tears the
other's: whichever manifest stands, it and its files belong together.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from adapters.blobs.local import check_digest, is_digest
from adapters.blobs.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, StoredFile
from adapters.blobs.objects import Objects
from adapters.errors import AdapterNotFound, InvalidAdapter, RegistryUnavailable

_WINDOW = 16 * 1024**2
_QUARANTINE = "quarantine"


class RemoteStore:
    """Blobs among `objects`. Safe from any thread, and beside other servers with the same store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    @property
    def url(self) -> str:
        return self._objects.url

    def probe(self) -> None:
        """Write, read, list and delete one object.

        Raises:
            RegistryUnavailable: one of these can't be done, in one line.
        """
        key, text = f"probe/{uuid4().hex}", b"multilora"
        if self._probe(key) != b"":  # without leave to list, S3 refuses to say that there is none
            raise RegistryUnavailable(f"the blob store {self.url} has what nobody wrote")
        self._objects.create(key, text)
        if self._probe(key) != text or key not in self._objects.list("probe"):
            raise RegistryUnavailable(f"the blob store {self.url} does not give back what was written to it")
        self._objects.delete(key)

    def _probe(self, key: str) -> bytes:
        try:
            return self._objects.read(key, 0, 100)
        except FileNotFoundError:
            return b""

    def has(self, digest: str) -> bool:
        """Whether the blob is there, going by its manifest."""
        return self._manifest(digest) is not None

    def publish(self, digest: str, folder: Path) -> None:
        """Store the files of `folder`; when this returns, they can be fetched.

        What is there already is read and compared; if it is damaged, it is replaced.
        """
        check_digest(digest)
        try:
            known = self._manifest(digest)
            damaged = known is not None and not self._is_whole(known)
        except InvalidAdapter:
            known, damaged = None, True
        if known is not None and not damaged:
            return
        ours = Manifest.describe(digest, folder)
        for name, file in ours.files.items():
            key = _key(ours, name)
            if not self._objects.create(key, folder / name) and not self._is_intact(key, file):
                self._objects.put(key, folder / name)
        if damaged:
            self._objects.put(_manifest_key(digest), ours.text())
        else:
            # If another server was first, its manifest stands, and its files are as good.
            self._objects.create(_manifest_key(digest), ours.text())

    def fetch(self, digest: str, folder: Path) -> None:
        """Write the files into `folder`, each checked against the manifest while it comes.

        Raises:
            AdapterNotFound: there is no such blob.
            InvalidAdapter: it is damaged; names the file. What is in `folder` is not to be used.
        """
        try:
            self._fetch(digest, folder)
        except InvalidAdapter:
            # It may have been garbled on its way, or replaced or removed meanwhile.
            self._fetch(digest, folder)

    def _fetch(self, digest: str, folder: Path) -> None:
        manifest = self._manifest(digest)
        if manifest is None:
            raise AdapterNotFound(f"no adapter with digest {digest[:12]}")
        for name, file in manifest.files.items():
            hasher, size = hashlib.sha256(), 0
            with (folder / name).open("wb") as target:
                for piece in self._pieces(manifest, name):
                    target.write(piece)
                    hasher.update(piece)
                    size += len(piece)
            if size != file.size:
                raise InvalidAdapter(
                    f"{name} of stored adapter {digest[:12]} is damaged in the blob store: "
                    f"{size} bytes of {file.size}; publish it again"
                )
            if hasher.hexdigest() != file.sha256:
                raise InvalidAdapter(
                    f"{name} of stored adapter {digest[:12]} is damaged in the blob store: its SHA-256 is "
                    f"{hasher.hexdigest()[:12]}, not {file.sha256[:12]}; publish it again"
                )

    def remove(self, digest: str) -> None:
        """Delete the blob and what is left of others of its digest: its manifest first."""
        check_digest(digest)
        self._objects.delete(_manifest_key(digest))
        for key in self._objects.list(digest):
            self._objects.delete(key)

    def quarantine(self, digest: str, label: str) -> None:
        """Move all that is stored of the digest to `quarantine/<label>`: its manifest first."""
        check_digest(digest)
        found = self._objects.list(digest)
        for key in sorted(found, key=lambda key: key != _manifest_key(digest)):
            self._objects.move(key, f"{_QUARANTINE}/{label}/{key.removeprefix(f'{digest}/')}")

    def older_than(self, seconds: float) -> list[str]:
        """Digests of which nothing was written for so long, whole or not."""
        newest: dict[str, float] = {}
        for key, written in self._objects.list("").items():
            digest = key.partition("/")[0]
            if is_digest(digest):
                newest[digest] = max(newest.get(digest, written), written)
        return [digest for digest, written in newest.items() if written < time.time() - seconds]

    def close(self) -> None:
        """End connections."""
        self._objects.close()

    def _manifest(self, digest: str) -> Manifest | None:
        check_digest(digest)
        try:
            text = self._objects.read(_manifest_key(digest), 0, MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            return None
        return Manifest.parse(text, digest)

    def _is_whole(self, manifest: Manifest) -> bool:
        return all(self._is_intact(_key(manifest, name), file) for name, file in manifest.files.items())

    def _is_intact(self, key: str, file: StoredFile) -> bool:
        """Whether exactly these bytes are stored, by reading them."""
        hasher = hashlib.sha256()
        try:
            for piece in self._read(key, file.size):
                hasher.update(piece)
        except FileNotFoundError:
            return False
        return hasher.hexdigest() == file.sha256

    def _pieces(self, manifest: Manifest, name: str) -> Iterator[bytes]:
        try:
            yield from self._read(_key(manifest, name), manifest.files[name].size)
        except FileNotFoundError:
            raise InvalidAdapter(
                f"{name} of stored adapter {manifest.digest[:12]} is missing in the blob store; "
                "publish it again"
            ) from None

    def _read(self, key: str, size: int) -> Iterator[bytes]:
        """The first `size` bytes, or as many as there are."""
        for start in range(0, size, _WINDOW):
            asked = min(_WINDOW, size - start)
            piece = self._objects.read(key, start, asked)
            yield piece
            if len(piece) != asked:
                return


def _manifest_key(digest: str) -> str:
    return f"{digest}/{MANIFEST_FILE}"


def _key(manifest: Manifest, name: str) -> str:
    return f"{manifest.digest}/{manifest.edition}/{name}"
