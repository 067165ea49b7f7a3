"""Folders that appear whole or not at all, whatever interrupts their writing."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from server.cli.exits import Exit, Failed


def check_free(target: Path, replaceable: Collection[str] = ()) -> None:
    """Whether a folder may be written at `target`.

    Args:
        replaceable: names of files that may be there and go. A folder with any other is never replaced.

    Raises:
        Failed: something is there.
    """
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not target.is_dir():
        raise Failed(f"{target} is there and is no folder", Exit.CONFLICT)
    present = sorted(path.name for path in target.iterdir())
    if present and not replaceable:
        raise Failed(f"{target} is there and not empty", Exit.CONFLICT)
    foreign = [name for name in present if name not in replaceable]
    if foreign:
        raise Failed(f"{target} holds {foreign[0]}, which is no adapter's; it is not replaced", Exit.CONFLICT)


@contextmanager
def written(target: Path, replaceable: Collection[str] = ()) -> Iterator[Path]:
    """A new folder beside `target` to be filled; at the end of the block it becomes `target`.

    Raises:
        Failed: as `check_free`, or the disk refuses.
    """
    check_free(target, replaceable)
    target = Path(os.path.abspath(target))
    staging = target.parent / f".{target.name[:100]}.{secrets.token_hex(4)}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        filled = staging / "new"
        filled.mkdir()
        yield filled
        for path in (*filled.rglob("*"), filled):
            _sync(path)
        check_free(target, replaceable)
        _replace(target, filled, staging / "old")
    except OSError as error:
        raise Failed(f"{error.filename or target}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(target: Path, filled: Path, old: Path) -> None:
    """Put `filled` in the place of `target`; should that fail, what was there comes back."""
    with suppress(FileNotFoundError):
        os.rename(target, old)
    try:
        os.rename(filled, target)
    except BaseException:
        if old.exists():
            os.rename(old, target)
        raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
