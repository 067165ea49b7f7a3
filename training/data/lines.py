"""From bytes to JSON values, a line at a time: nothing in a file can take more memory than a line may."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

from training.data.problems import one

MAX_LINE = 16 * 1024**2
"""Bytes of one line."""
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}


def read_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """The number, from 1, and the bytes of each line that is not blank; None for one over `MAX_LINE`.

    Only a line feed ends a line.
    """
    number = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if len(raw) > MAX_LINE and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE)
            yield number, None
        elif raw.strip():
            yield number, raw


def decode(raw: bytes | None) -> Any:
    """The JSON value of a line.

    Raises:
        RowError: it is too long, not UTF-8 or not JSON.
    """
    if raw is None:
        raise one("line_too_long", f"longer than {MAX_LINE} bytes, the most that a line may have")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        looks = next(
            (f"; the file looks like {name}" for magic, name in _MAGIC.items() if raw.startswith(magic)), ""
        )
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            looks = "; the file looks like UTF-16: save it as UTF-8"
        raise one(
            "invalid_utf8", f"not UTF-8: byte {error.start + 1} is {raw[error.start]:#04x}{looks}"
        ) from None
    try:
        return loads(text)
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at column {error.colno}"
        if raw.lstrip().startswith(b"["):
            reason += "; if the file is one JSON array, write each of its objects on a line"
        raise one("invalid_json", reason) from None
    except UnicodeEncodeError:
        raise one(
            "invalid_utf8", "an escape such as \\ud83d is half a character; its other half is missing"
        ) from None
    except ValueError as error:
        raise one("invalid_json", f"not JSON: {error}") from None


def loads(text: str) -> Any:
    """A JSON value, as the standard has it: no NaN, no key twice, no half of a character.

    Raises:
        ValueError: it is none; json.JSONDecodeError and UnicodeEncodeError are such.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a value of JSON")
