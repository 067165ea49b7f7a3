"""Objects behind any URL that fsspec knows: `s3://bucket/prefix`, `gs://`, `az://` and others.

Credentials, endpoint and region come from the environment, as each store's own tools read them.
"""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec  # type: ignore[import-untyped]

from adapters.errors import AdapterError, RegistryUnavailable

T = TypeVar("T")
_S3 = {"s3", "s3a"}
_PART = 8 * 1024**2  # of an upload; S3 takes at least 5 MiB
_PIECE = 4 * 1024**2  # of a download
_AT_ONCE = 4
_TRANSIENT = {
    errno.EAGAIN,
    errno.EBUSY,  # what s3fs makes of 503 and SlowDown
    errno.EIO,  # and of codes that it does not know
    errno.EPIPE,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EREMOTEIO,  # of 500
    errno.ETIMEDOUT,
}
_CLIENTS = {"aiobotocore", "aiohttp", "botocore", "urllib3"}
_EXISTS = {"PreconditionFailed", "412"}
_OF_MORE_THAN_THE_KEY = {"NoSuchBucket", "NoSuchUpload"}
_PAST_THE_END = {"InvalidRange", "416"}
_GARBLED = {"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}
_HINTS: tuple[tuple[type[Exception], str], ...] = (
    (FileNotFoundError, "not found"),
    (PermissionError, "permission denied"),
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a store may take.

    Attributes:
        connect, read: seconds until a connection stands, and between two pieces of an answer.
        attempts: of each operation; beneath it each request is sent `requests` times.
        pause: seconds before the second attempt; doubled before each further one.
        longest: seconds after which there is no further attempt.
    """

    connect: float = 5.0
    read: float = 15.0
    attempts: int = 4
    requests: int = 2
    pause: float = 0.25
    longest: float = 60.0


class Bucket:
    """`Objects` below `url`.

    Raises:
        AdapterError: no such protocol, or what it needs is not installed.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.url, self._patience = url, patience or Patience()
        protocol = url.partition("://")[0]
        self._is_s3 = protocol in _S3
        try:
            self._fs: Any = fsspec.filesystem(protocol, **self._options())
        except ImportError as error:
            hint = "pip install 'multilora[s3]'" if self._is_s3 else str(error)
            raise AdapterError(f"{protocol}:// needs a package that is not installed: {hint}") from error
        except ValueError as error:
            raise AdapterError(f"no way is known to reach {url}: {error}") from error
        if self._is_s3:
            self._fs.retries = 1  # botocore retries requests, we operations; a third layer adds nothing
        self._root = str(self._fs._strip_protocol(url)).rstrip("/")

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if self._is_s3:
            retries = {"mode": "standard", "total_max_attempts": self._patience.requests}
            options["max_concurrency"] = _AT_ONCE
            options["config_kwargs"] = {
                "connect_timeout": self._patience.connect,
                "read_timeout": self._patience.read,
                "retries": retries,
            }
        return options

    def create(self, key: str, source: Path | bytes) -> bool:
        try:
            self._call(key, lambda: self._write(key, source, "create"))
        except FileExistsError:
            return False
        return True

    def put(self, key: str, source: Path | bytes) -> None:
        self._call(key, lambda: self._write(key, source, "overwrite"))

    def _write(self, key: str, source: Path | bytes, mode: str) -> None:
        path = self._path(key)
        try:
            if isinstance(source, bytes):
                self._fs.pipe_file(path, source, mode=mode)
            else:
                options = {"chunksize": _PART} if self._is_s3 else {}
                self._fs.put_file(str(source), path, mode=mode, **options)
        except OSError as error:
            if mode == "create" and _code(error) in _EXISTS:
                raise FileExistsError(path) from error
            if mode != "create" or error.errno != errno.ENOSYS:
                raise
            # A store without conditional writes. Two writers of one key write the same bytes, or either's
            # will do, so that these only save work.
            if self._fs.exists(path):
                raise FileExistsError(path) from None
            self._write(key, source, "overwrite")

    def read(self, key: str, start: int, size: int) -> bytes:
        path = self._path(key)
        starts = list(range(start, start + size, _PIECE))
        ends = [min(at + _PIECE, start + size) for at in starts]

        def pieces() -> bytes:
            paths = [path] * len(starts)
            found = self._fs.cat_ranges(paths, starts, ends, batch_size=_AT_ONCE, on_error="return")
            for piece in found:
                if isinstance(piece, Exception) and _code(piece) not in _PAST_THE_END:
                    raise piece
            return b"".join(piece for piece in found if isinstance(piece, bytes))

        return self._call(key, pieces)

    def list(self, folder: str) -> Mapping[str, float]:
        found = self._call(folder, lambda: self._fs.find(self._path(folder), detail=True))
        return {path[len(self._root) + 1 :]: self._time(path, info) for path, info in found.items()}

    def _time(self, path: str, info: Mapping[str, Any]) -> float:
        found = next((info[name] for name in ("LastModified", "mtime", "created") if info.get(name)), None)
        if found is None:
            found = self._fs.modified(path)
        return found.timestamp() if isinstance(found, datetime) else float(found)

    def move(self, key: str, target: str) -> None:
        self._call(key, lambda: self._fs.cp_file(self._path(key), self._path(target)))
        self.delete(key)

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._call(key, lambda: self._fs.rm_file(self._path(key)))

    def close(self) -> None:
        creator = getattr(self._fs, "_s3creator", None)
        if creator is not None:
            self._fs.close_session(self._fs.loop, creator)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _call(self, what: str, operation: Callable[[], T]) -> T:
        """What the operation gives; after transient errors it is tried again, for a bounded time.

        Raises:
            FileNotFoundError, FileExistsError: as the operation.
            RegistryUnavailable: anything else.
        """
        began, attempt = time.monotonic(), 1
        while True:
            try:
                return operation()
            except FileExistsError:
                raise
            except Exception as error:
                if isinstance(error, FileNotFoundError) and _code(error) not in _OF_MORE_THAN_THE_KEY:
                    raise
                late = time.monotonic() - began > self._patience.longest
                if late or attempt >= self._patience.attempts or not _is_transient(error):
                    raise self.failed(what, error) from error
            time.sleep(self._patience.pause * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            attempt += 1

    def failed(self, what: str, error: Exception) -> RegistryUnavailable:
        """The line for an operator."""
        hint = next((hint for kind, hint in _HINTS if isinstance(error, kind)), type(error).__name__)
        detail = " ".join(str(error).split())[:300]
        short = re.sub(r"([0-9a-f]{12})[0-9a-f]{20,52}", r"\1", what)
        return RegistryUnavailable(f"the blob store {self.url} failed ({short}): {hint}: {detail}")


def _code(error: BaseException) -> str:
    """S3's own name of the error that s3fs translated; empty for others."""
    answer = getattr(error.__cause__, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


def _is_transient(error: Exception) -> bool:
    """Whether it may go by itself."""
    if isinstance(error, PermissionError):
        return False
    if isinstance(error, (TimeoutError, ConnectionError)) or _code(error) in _GARBLED:
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _TRANSIENT
    return type(error).__module__.partition(".")[0] in _CLIENTS and "Credential" not in type(error).__name__
