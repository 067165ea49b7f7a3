"""What a blob URL means: a bucket with a prefix, or a folder of a shared disk."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from adapters.blobs.bucket import Bucket
from adapters.blobs.objects import Objects
from adapters.blobs.shared import SharedFolder
from adapters.errors import AdapterError

_FILE = {"file", "local"}


def open_objects(url: str, data_dir: Path) -> Objects:
    """The objects behind `url`: `s3://bucket/prefix`, `file:///mnt/adapters`, or what else fsspec knows.

    Raises:
        AdapterError: it is no such URL, or would have the data directory in it.
    """
    parts = urlsplit(url)
    _check(url, parts)
    if parts.scheme in _FILE:
        folder = Path(unquote(parts.path)).resolve()
        mine = data_dir.resolve()
        if folder.is_relative_to(mine) or mine.is_relative_to(folder):
            raise AdapterError(f"--blob-url {url} and --data-dir {data_dir} must not lie in one another")
        return SharedFolder(folder)
    return Bucket(url.rstrip("/"))


def _check(url: str, parts: SplitResult) -> None:
    shown = url.partition("@")[2] or url  # without a password
    if not parts.scheme or "://" not in url or "::" in url:
        raise AdapterError(
            f"--blob-url {shown!r} is not a URL such as s3://bucket/prefix or file:///mnt/adapters"
        )
    if "@" in parts.netloc:
        raise AdapterError(f"--blob-url ...@{shown} has credentials in it; give them in the environment")
    if parts.query or parts.fragment or ".." in parts.path.split("/"):
        raise AdapterError(f"--blob-url {shown} must be a plain path, without '?', '#' and '..'")
    if parts.scheme in _FILE and (parts.netloc or parts.path.strip("/") == ""):
        raise AdapterError(f"--blob-url {shown} must name a folder by its whole path: file:///mnt/adapters")
    if parts.scheme not in _FILE and not parts.netloc:
        raise AdapterError(f"--blob-url {shown} names no bucket: s3://bucket/prefix")
