"""`multilora deprecate`, `rm`, `preload`, `pin` and `unpin`: how long a version stays, and where."""

from __future__ import annotations

import argparse
import sys

from server.cli.client import Client, path_of
from server.cli.exits import Exit, Failed
from server.cli.remote import add_ref, add_remote, connect, show

MAX_DRAIN = 300


def add_deprecate(parser: argparse.ArgumentParser) -> None:
    add_ref(parser)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("reason", metavar="REASON", nargs="?", help="what users are told")
    choice.add_argument("--undo", action="store_true", help="take the deprecation back")
    add_remote(parser, deprecate)


def add_rm(parser: argparse.ArgumentParser) -> None:
    add_ref(parser, "a version such as name@3, or a name with all its versions")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--force", action="store_true", help="a name though it has other aliases than default"
    )
    parser.add_argument(
        "--drain",
        metavar="SECONDS",
        type=seconds,
        help=f"wait for the requests that run on it, at most so long (up to {MAX_DRAIN})",
    )
    add_remote(parser, rm)


def add_preload(parser: argparse.ArgumentParser) -> None:
    add_ref(parser)
    add_remote(parser, lambda arguments: _want(arguments, "preload"))


def add_pin(parser: argparse.ArgumentParser) -> None:
    add_ref(parser)
    add_remote(parser, lambda arguments: _want(arguments, "pin"))


def add_unpin(parser: argparse.ArgumentParser) -> None:
    add_ref(parser)
    add_remote(parser, lambda arguments: _want(arguments, "unpin"))


def seconds(text: str) -> float:
    """An argument from 0 to `MAX_DRAIN`."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number <= MAX_DRAIN:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {MAX_DRAIN}")
    return number


def deprecate(arguments: argparse.Namespace) -> int:
    """Mark the version, or take the mark back."""
    reason = None if arguments.undo else arguments.reason or ""
    with connect(arguments) as client:
        adapter = client.post(path_of("adapters", arguments.ref, "deprecate"), {"reason": reason})
    show(arguments, adapter, lambda: f"{adapter['id']} is {adapter['state']}")
    return 0


def rm(arguments: argparse.Namespace) -> int:
    """Delete, after asking whoever sits at the terminal."""
    with connect(arguments) as client:
        if not arguments.yes and not _agreed(client, arguments.ref):
            raise Failed("nothing was deleted")
        answer = client.delete(
            path_of("adapters", arguments.ref),
            force=arguments.force or None,
            drain_seconds=arguments.drain,
        )
    left = "" if answer.get("drained", True) else "; requests still finish on it"
    show(arguments, answer, lambda: f"deleted {' '.join(answer['versions'])}{left}")
    return 0


def _agreed(client: Client, ref: str) -> bool:
    """Whether to go on, having shown what would go."""
    if not sys.stdin.isatty():
        raise Failed("rm: nobody is there to be asked; give --yes", Exit.USAGE)
    adapter = client.get(path_of("adapters", ref))
    doomed = [adapter["id"]] if "@" in ref else adapter.get("versions", [])
    print(f"Delete {' '.join(doomed)}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _want(arguments: argparse.Namespace, action: str) -> int:
    with connect(arguments) as client:
        adapter = client.post(path_of("adapters", arguments.ref, action))
    kept = {"pinned": "stays in memory", "loaded": "is loaded at each start"}.get(
        adapter["desired"], "is loaded when it is asked"
    )
    show(arguments, adapter, lambda: f"{adapter['id']} {kept}")
    return 0


VERBS = {
    "deprecate": add_deprecate,
    "rm": add_rm,
    "preload": add_preload,
    "pin": add_pin,
    "unpin": add_unpin,
}
