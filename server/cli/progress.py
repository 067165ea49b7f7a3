"""How far a transfer is: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import io
import sys
from types import TracebackType
from typing import Any, BinaryIO, Self


class Progress:
    """A bar on stderr, gone when it is closed.

    Args:
        total: bytes; None: nobody knows.
    """

    def __init__(self, total: int | None, what: str) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024, leave=False
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, count: int) -> None:
        """`count` more bytes went by."""
        if self._bar is not None:
            self._bar.update(count)


class Counted(io.RawIOBase):
    """A file to be read whose bytes are counted on their way."""

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self._file, self._progress = file, progress

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        """By which its length is found."""
        return self._file.fileno()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._progress.add(len(data))
        return len(data)
