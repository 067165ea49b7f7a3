"""Names: `name` is what its default alias means, `name@3` version 3 for ever, `name@prod` what `prod` means.

A name of another tenant than the caller's own is written `tenant/name`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapters.errors import InvalidName

DEFAULT_TENANT = "default"
"""Whose adapters are those of a server without keys; its name is left out of references."""
DEFAULT_ALIAS = "default"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_RESERVED = re.compile(
    r"latest|base|v?[0-9]+|aliases|audit|canary|deprecate|files|history|lineage|merged|pin|preload|promote"
    r"|rollback|shares|unpin|versions"
)
"""Words that would read as something else in a reference, or in the path of a route."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A parsed reference. `tenant` is None for a bare name; at most one of `version` and `alias` is set."""

    tenant: str | None
    name: str
    version: int | None = None
    alias: str | None = None


def full_name(tenant: str, name: str) -> str:
    """`name`, or `tenant/name` of another tenant than the default one."""
    return name if tenant == DEFAULT_TENANT else f"{tenant}/{name}"


def name_for(caller: str, tenant: str, name: str) -> str:
    """The name by which a caller of the tenant `caller` can ask for `name` of `tenant`.

    To other tenants those of the default one are `default/name`: a bare name would be their own.
    """
    return f"{tenant}/{name}" if tenant == DEFAULT_TENANT != caller else full_name(tenant, name)


def parse_ref(text: str) -> Ref:
    """`name`, `name@3`, `name@alias`, each also as `tenant/...`.

    Raises:
        InvalidName: none of these.
    """
    tenant, slash, rest = text.rpartition("/")
    name, at, selector = rest.partition("@")
    is_version = bool(_VERSION.fullmatch(selector))
    if (
        not _NAME.fullmatch(name)
        or (slash and not _TENANT.fullmatch(tenant))
        or (at and not is_version and (not _NAME.fullmatch(selector) or selector.isdigit()))
    ):
        raise InvalidName(
            f"{text[:100]!r} is not an adapter name such as 'name', 'name@3', 'name@prod' or 'tenant/name'"
        )
    alias = selector if at and not is_version else None
    return Ref(tenant if slash else None, name, int(selector) if is_version else None, alias)


def check_new_name(name: str, served_name: str) -> None:
    """Whether an adapter may be published as `name` beside a base served as `served_name`.

    Raises:
        InvalidName: saying which rule it breaks.
    """
    _check("adapter name", name, _NAME, "'.', '_' and '-'")
    if name == served_name.lower():
        raise InvalidName(f"adapter name {name!r} is the base model's name; choose another")


def check_alias(alias: str) -> None:
    """Whether an alias may be called so.

    Raises:
        InvalidName: saying which rule it breaks.
    """
    _check("alias", alias, _NAME, "'.', '_' and '-'")


def check_tenant(tenant: str) -> None:
    """Whether a tenant may be called so.

    Raises:
        InvalidName: saying which rule it breaks.
    """
    _check("tenant", tenant, _TENANT, "'-'")


def _check(what: str, name: str, grammar: re.Pattern[str], others: str) -> None:
    if name != name.lower():
        # Names that differ only in case would be one folder on some disks and two on others.
        raise InvalidName(f"{what} {name[:100]!r} has capital letters; use {name[:100].lower()!r}")
    if not grammar.fullmatch(name):
        raise InvalidName(
            f"{what} {name[:100]!r} must be 1 to 63 of a-z, 0-9, {others}, and begin with a letter or digit"
        )
    if _RESERVED.fullmatch(name):
        raise InvalidName(f"{what} {name!r} is reserved; choose another")
