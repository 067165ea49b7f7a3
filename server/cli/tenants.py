"""`multilora tenants`: tenants and their quotas, for operators."""

from __future__ import annotations

import argparse
import re
from typing import Any

from server.cli.client import Json, path_of
from server.cli.exits import Exit, Failed
from server.cli.remote import add_remote, connect, show, tenant_name, whole
from server.cli.text import as_size, as_time, fields, table

HEADER = (
    "TENANT",
    "VERSIONS",
    "BYTES",
    "RANK",
    "IN FLIGHT",
    "TOKENS/MIN",
    "JOBS",
    "FILES",
    "WEIGHT",
    "CREATED",
)
LIMITS = {
    "max_versions": "live versions",
    "max_bytes": "bytes of all live versions' weights, such as 500MiB or 20GiB",
    "max_rank": "rank of one adapter",
    "max_in_flight": "answers that run at one time",
    "tokens_per_minute": "prompt and generated tokens, averaged over a minute",
    "max_jobs": "fine-tuning jobs that are not over",
    "max_file_bytes": "bytes of all training files, such as 500MiB or 20GiB",
}
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def add_tenants(parser: argparse.ArgumentParser) -> None:
    verbs: Any = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    ls = verbs.add_parser("ls", help="list the tenants with their quotas", allow_abbrev=False)
    add_remote(ls, list_tenants)
    put = verbs.add_parser(
        "set", help="make a tenant, or change the quotas that are named", allow_abbrev=False
    )
    put.add_argument("name", metavar="TENANT", type=tenant_name)
    for limit, text in LIMITS.items():
        kind = bound_bytes if limit.endswith("_bytes") else bound
        flag = f"--{limit.replace('_', '-')}"
        put.add_argument(
            flag, metavar="N", type=kind, default=argparse.SUPPRESS, help=f"most {text}; none: no bound"
        )
    put.add_argument(
        "--weight",
        metavar="W",
        type=weight,
        default=argparse.SUPPRESS,
        help="its share of the batch beside those of others: 0.01 to 100, at first 1",
    )
    add_remote(put, set_tenant)
    rm = verbs.add_parser(
        "rm", help="remove a tenant without adapters; its keys are revoked", allow_abbrev=False
    )
    rm.add_argument("name", metavar="TENANT", type=tenant_name)
    add_remote(rm, remove_tenant)


def bound(text: str) -> int | None:
    """An argument that is a number, or `none`."""
    return None if text == "none" else whole(text)


def bound_bytes(text: str) -> int | None:
    """An argument such as `1000`, `20GiB` or `none`."""
    match = re.fullmatch(r"([0-9]{1,18})([KMGT]iB|)", text, re.ASCII)
    if text == "none":
        return None
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes such as 1000, 500MiB or 20GiB")
    return int(match[1]) * _UNITS[match[2]]


def weight(text: str) -> float:
    """An argument from 0.01 to 100."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.01 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0.01 to 100")
    return number


def list_tenants(arguments: argparse.Namespace) -> int:
    """Print all tenants."""
    with connect(arguments) as client:
        found = client.get(path_of("tenants"))
    rows = [
        (tenant["id"], *_limits(tenant["quota"]), as_time(tenant["created"]) if tenant["created"] else "")
        for tenant in found["data"]
    ]
    show(arguments, found, lambda: table(HEADER, rows))
    return 0


def set_tenant(arguments: argparse.Namespace) -> int:
    """Make the tenant, or change what was named of its quota; the rest stays."""
    changes = {name: getattr(arguments, name) for name in (*LIMITS, "weight") if hasattr(arguments, name)}
    path = path_of("tenants", arguments.name)
    with connect(arguments) as client:
        try:
            quota = client.get(path)["quota"]
        except Failed as error:
            if error.code != Exit.NOT_FOUND:
                raise
            quota = {}
        tenant = client.put(path, {"quota": {**quota, **changes}})
    limits = zip(HEADER[1:-1], _limits(tenant["quota"]), strict=True)
    shown = [("tenant", tenant["id"]), *((name.lower(), value or "no bound") for name, value in limits)]
    show(arguments, tenant, lambda: fields(shown))
    return 0


def remove_tenant(arguments: argparse.Namespace) -> int:
    """Remove the tenant."""
    with connect(arguments) as client:
        answer = client.delete(path_of("tenants", arguments.name))
    show(arguments, answer, lambda: f"removed tenant {answer['id']}")
    return 0


def _limits(quota: Json) -> tuple[str, ...]:
    """In the order of `HEADER`; empty for what has no bound."""
    shown = (
        "" if quota[name] is None else as_size(quota[name]) if name.endswith("_bytes") else str(quota[name])
        for name in LIMITS
    )
    return *shown, f"{quota['weight']:g}"


VERBS = {"tenants": add_tenants}
