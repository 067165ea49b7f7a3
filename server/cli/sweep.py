"""`multilora sweep`: have the server verify its stored files and remove what nothing needs."""

from __future__ import annotations

import argparse

from server.cli.client import path_of
from server.cli.exits import Exit
from server.cli.remote import add_remote, connect, show
from server.cli.text import fields


def add_sweep(parser: argparse.ArgumentParser) -> None:
    add_remote(parser, sweep)


def sweep(arguments: argparse.Namespace) -> int:
    """Print what was found. Returns 1 if versions need files that are nowhere."""
    with connect(arguments) as client:
        report = client.post(path_of("registry", "sweep"))
    shown = ((name, " ".join(report[name]) or "none") for name in ("quarantined", "missing", "removed"))
    show(arguments, report, lambda: fields([("checked", report["checked"]), *shown]))
    return Exit.FAILED if report["missing"] else Exit.DONE


VERBS = {"sweep": add_sweep}
