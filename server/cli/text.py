"""Answers as text for a terminal: tables, sizes, times. Nothing of an answer can steer the terminal."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Iterable, Sequence

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def clean(value: object) -> str:
    """One line of text; what is not printable, such as the start of an escape sequence, is spelled out."""
    text = "" if value is None else str(value)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns side by side under `header`, each as wide as its widest cell."""
    cells = [list(header), *([clean(cell) or "-" for cell in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(_padded(cell, width) for cell, width in zip(row, widths, strict=True)) for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def fields(pairs: Iterable[tuple[str, object]]) -> str:
    """A line for each name and value; those without a value are left out."""
    shown = [(name, clean(value)) for name, value in pairs if value not in (None, "", [], ())]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown)


def as_json(answer: object) -> str:
    """An answer for programs: ASCII, so that it can't steer a terminal either."""
    return json.dumps(answer, indent=2)


def as_size(size: object) -> str:
    """Bytes in the largest fitting unit, such as `287 KiB` or `9.4 MiB`."""
    if not isinstance(size, int | float):
        return "-"
    amount, unit = float(size), 0
    while amount >= 1000 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit and amount < 10 else f"{amount:.0f} {_UNITS[unit]}"


def as_time(seconds: object) -> str:
    """Unix time as UTC: `2026-11-21 09:30:16Z`."""
    if not isinstance(seconds, int | float):
        return "-"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def as_numbers(numbers: Iterable[int]) -> str:
    """`1-3,5` for 1, 2, 3 and 5."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))
