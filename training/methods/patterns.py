"""Patterns in the config of an adapter that somebody else made, before PEFT gives them to Python's matcher.

That one tries all ways to match, which can take years for a pattern of 20 characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

op: Any = import_module("re._constants")
_parser: Any = import_module("re._parser")
_FIELDS = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
MOST_LOOPS, MOST_CHOICES = 4, 10


def slow_pattern(config: Any) -> str | None:
    """Which field of a PEFT config has a pattern that may take for ever; None: none has."""
    for field in _FIELDS:
        value = getattr(config, field, None)
        many = field.endswith("_pattern")  # items of the others are names
        for text in (value,) if isinstance(value, str) else value or () if many else ():
            if _is_slow(str(text), MOST_LOOPS - many):  # to these PEFT adds a loop of its own
                return f"{field} {str(text)[:100]!r} is too complex a pattern: name the modules"
    return None


def _is_slow(text: str, most_loops: int) -> bool:
    try:
        found = list(_parts(_parser.parse(text)))
    except (re.error, OverflowError, RecursionError):
        return True
    return "nested" in found or found.count("loop") > most_loops or found.count("choice") > MOST_CHOICES


def _parts(tree: Any, inside: bool = False) -> Iterator[str]:
    """A `loop` for each repeat, a `choice` for each way to go on, `nested` for one of them in a loop."""
    for code, value in tree:
        within = inside
        if code in (op.MAX_REPEAT, op.MIN_REPEAT, op.BRANCH):
            is_loop = code is not op.BRANCH and value[1] > 1
            yield "nested" if inside else "loop" if is_loop else "choice"
            within = inside or is_loop
        elif code in (op.ASSERT, op.ASSERT_NOT, op.GROUPREF, op.GROUPREF_EXISTS):
            yield "choice"
        for part in _inner(code, value):
            yield from _parts(part, within)


def _inner(code: Any, value: Any) -> tuple[Any, ...]:
    if code is op.BRANCH:
        return tuple(value[1])
    if code in (op.MAX_REPEAT, op.MIN_REPEAT, op.SUBPATTERN, op.ASSERT, op.ASSERT_NOT):
        return (value[-1],)
    if code is op.GROUPREF_EXISTS:
        return tuple(part for part in value[1:] if part is not None)
    return (value,) if code is op.ATOMIC_GROUP else ()
