"""`multilora logs`: the audit log, one line for each change."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator

from server.cli.client import PAGE, Client, Json, path_of
from server.cli.remote import add_remote, connect
from server.cli.text import as_time, clean

POLL_SECONDS = 1.0


def add_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject",
        metavar="REF",
        nargs="?",
        help="only of this adapter (with its versions and aliases), version, alias, tenant or key",
    )
    parser.add_argument("--follow", action="store_true", help="go on with changes as they are made")
    add_remote(parser, logs)


def logs(arguments: argparse.Namespace) -> int:
    """Print the changes, oldest first; with `--json` an object a line."""
    with connect(arguments) as client:
        for entry in _entries(client, arguments.subject, arguments.follow):
            line = json.dumps(entry) if arguments.json else as_line(entry)
            print(line, flush=arguments.follow)
    return 0


def as_line(entry: Json) -> str:
    """`2026-11-21 09:30:16Z  acme  key-0123456789ab  promote  acme/legal@default  targets [...] -> [...]`."""
    words = (as_time(entry["time"]), entry["tenant"], entry["actor"], entry["action"], entry["subject"])
    return "  ".join(map(clean, (*words, _change(entry["before"] or {}, entry["after"] or {})))).rstrip()


def _change(before: Json, after: Json) -> str:
    """Each field that is not what it was."""
    fields = [field for field in {**before, **after} if before.get(field) != after.get(field)]
    return ", ".join(
        f"{field} {json.dumps(before[field])} -> {json.dumps(after.get(field))}"
        if field in before
        else f"{field} {json.dumps(after[field])}"
        for field in fields
    )


def _entries(client: Client, subject: str | None, follow: bool) -> Iterator[Json]:
    last = 0
    while True:
        page = client.get(path_of("audit"), after=last, limit=PAGE, subject=subject)
        for entry in page["data"]:
            yield entry
            last = entry["id"]
        if not page["has_more"]:
            if not follow:
                return
            time.sleep(POLL_SECONDS)


VERBS = {"logs": add_logs}
