"""Adapter names and references: `name` is the newest version, `name@3` is version 3 for ever."""

from __future__ import annotations

import re

from adapters.errors import InvalidName

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_RESERVED = re.compile(r"latest|base|v[0-9]+")


def parse_ref(text: str) -> tuple[str, int | None]:
    """`"name"` -> `("name", None)`; `"name@3"` -> `("name", 3)`.

    Raises:
        InvalidName: neither of these.
    """
    name, at, version = text.partition("@")
    if not _NAME.fullmatch(name) or (at and not _VERSION.fullmatch(version)):
        raise InvalidName(f"{text[:100]!r} is not an adapter name such as 'name' or 'name@3'")
    return name, int(version) if at else None


def check_new_name(name: str, served_name: str) -> None:
    """Whether an adapter may be published as `name` beside a base served as `served_name`.

    Raises:
        InvalidName: saying which rule it breaks.
    """
    if name != name.lower():
        # Names that differ only in case would be one folder on some disks and two on others.
        raise InvalidName(f"adapter name {name[:100]!r} has capital letters; use {name[:100].lower()!r}")
    if not _NAME.fullmatch(name):
        raise InvalidName(
            f"adapter name {name[:100]!r} must be 1 to 63 of a-z, 0-9, '.', '_' and '-', "
            "and begin with a letter or digit"
        )
    if _RESERVED.fullmatch(name):
        raise InvalidName(f"adapter name {name!r} is reserved; choose another")
    if name == served_name.lower():
        raise InvalidName(f"adapter name {name!r} is the base model's name; choose another")
