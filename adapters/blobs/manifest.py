"""What a stored blob consists of, written beside its files and last of all: without it there is no blob."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.labels import LABELS_FILE
from adapters.checkpoint.strict_json import parse_object
from adapters.errors import InvalidAdapter

MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 64 * 1024
FORMAT = 1
_STORED = (CONFIG_FILE, WEIGHTS_FILE, LABELS_FILE)
_REQUIRED = {CONFIG_FILE, WEIGHTS_FILE}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file: SHA-256 of its bytes, hex, and their number."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of the blob of `digest`, by name."""

    digest: str
    files: Mapping[str, StoredFile]

    @classmethod
    def describe(cls, digest: str, folder: Path) -> Manifest:
        """That of the files in `folder`; what is only kept on this machine is left out."""
        present = [name for name in _STORED if (folder / name).is_file()]
        return cls(digest, {name: _describe(folder / name) for name in present})

    @classmethod
    def parse(cls, text: bytes, digest: str) -> Manifest:
        """Read one that was written for `digest`. It comes from afar, so nothing in it is believed.

        Raises:
            InvalidAdapter: it is damaged, or written by a newer release.
        """
        what = f"{MANIFEST_FILE} of stored adapter {digest[:12]}"
        fields = parse_object(text, what)
        if fields.get("format") != FORMAT:
            raise InvalidAdapter(
                f"{what} has format {fields.get('format')!r:.20}, this release reads {FORMAT}; "
                "it was damaged, or a newer release wrote it"
            )
        files = fields.get("files")
        if fields.get("digest") != digest or not isinstance(files, dict):
            raise InvalidAdapter(f"{what} is not the one of this digest")
        if not _REQUIRED <= files.keys() <= {*_STORED}:
            raise InvalidAdapter(f"{what} must list {CONFIG_FILE}, {WEIGHTS_FILE} and at most {LABELS_FILE}")
        return cls(
            digest, {name: _parse(files[name], f"{what}: {name}") for name in _STORED if name in files}
        )

    def text(self) -> bytes:
        """As it is stored."""
        files = {name: {"sha256": file.sha256, "size": file.size} for name, file in self.files.items()}
        return json.dumps({"format": FORMAT, "digest": self.digest, "files": files}, indent=1).encode()

    @property
    def edition(self) -> str:
        """Names the exact bytes of all files together, 32 hex digits.

        One digest may have several: it covers what an adapter computes, not how its files are laid out.
        """
        table = json.dumps([[name, file.sha256, file.size] for name, file in sorted(self.files.items())])
        return hashlib.sha256(table.encode()).hexdigest()[:32]


def _describe(path: Path) -> StoredFile:
    with path.open("rb") as file:
        return StoredFile(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _parse(entry: object, what: str) -> StoredFile:
    match entry:
        case {"sha256": str() as sha256, "size": int() as size, **rest} if (
            not rest and _SHA256.fullmatch(sha256) and not isinstance(size, bool) and size >= 0
        ):
            return StoredFile(sha256, size)
    raise InvalidAdapter(f"{what} must have a sha256 and a size")
