"""`multilora ps`: what runs and what is in memory."""

from __future__ import annotations

import argparse

from server.cli.client import Json, path_of
from server.cli.remote import add_remote, connect, show
from server.cli.text import as_size, fields, table

HEADER = ("ADAPTER", "STATE", "WHERE", "KEPT", "REQUESTS", "RANK", "SIZE")


def add_ps(parser: argparse.ArgumentParser) -> None:
    add_remote(parser, ps)


def ps(arguments: argparse.Namespace) -> int:
    """Print the server's load and memory, then the adapters in it."""
    with connect(arguments) as client:
        status = client.get(path_of("status"))
    show(arguments, status, lambda: as_text(status))
    return 0


def as_text(status: Json) -> str:
    """Lines about the server, and a table of adapters."""
    memory, base = status["memory"], status["model"]
    if status["quantization"]:
        base += f", {status['quantization']}"
    adapters = memory["adapter_bytes_device"] + memory["adapter_bytes_host"]
    lines = fields(
        [
            ("status", status["status"]),
            ("base", base),
            ("up", as_duration(status["uptime"])),
            ("requests", f"{status['running']} running, {status['waiting']} waiting"),
            ("publishing", f"{status['uploads']} uploads, {status['checks']} checks"),
            ("KV cache", f"{memory['kv_blocks_used']} of {memory['kv_blocks']} blocks"),
            ("adapters", f"{as_size(adapters)} of {as_size(memory['adapter_budget_bytes'])}"),
            ("others'", f"{status['others']} adapters in memory" if status["others"] else ""),
        ]
    )
    rows = [
        (
            adapter["id"],
            adapter["state"],
            adapter["tier"],
            adapter["desired"],
            adapter["requests"],
            adapter["rank"],
            as_size(adapter["size"]),
        )
        for adapter in status["adapters"]
    ]
    return f"{lines}\n\n{table(HEADER, rows)}" if rows else lines


def as_duration(seconds: int) -> str:
    """`3 d 4 h`, `4 h 5 min`, `5 min` or `12 s`."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds} s"


VERBS = {"ps": add_ps}
