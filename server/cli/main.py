"""`multilora`: each verb asks a server over HTTP, or calls the same code as the API.

Only the module of the verb that is run is imported, so that a client starts in a moment.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Collection, Sequence
from importlib import import_module

from server.cli.exits import MEANINGS, Exit, Failed
from server.cli.text import clean

VERBS = {
    "serve": ("serve", "serve a base model and its adapters over HTTP"),
    "check": ("check", "check an adapter against a base, and compare it with PEFT"),
    "merge": ("merge", "write a base with one adapter merged as a plain model folder"),
    "combine": ("combine", "combine LoRA adapters into one, as PEFT's add_weighted_adapter does"),
    "train": ("train", "train adapters: check the data, plan, run"),
    "files": ("training_files", "store files to train on, list, read and delete them"),
    "jobs": ("jobs", "have adapters trained on the server: create, watch, pause, cancel"),
    "ls": ("listing", "list the adapters that can be asked"),
    "show": ("showing", "show all that is known of one adapter version"),
    "push": ("push", "publish an adapter from a folder or the hub"),
    "pull": ("pull", "write an adapter as a folder that PEFT loads"),
    "export": ("export", "write the base with an adapter merged, as a model folder"),
    "promote": ("moving", "make an alias mean one version"),
    "rollback": ("moving", "make an alias mean what it did before its last change"),
    "canary": ("moving", "give one version a share of an alias's requests"),
    "alias": ("alias", "list, set and remove the aliases of an adapter"),
    "deprecate": ("lifecycle", "mark a version as one to move away from"),
    "rm": ("lifecycle", "delete a version, or an adapter with all its versions"),
    "preload": ("lifecycle", "load a version now and at each start"),
    "pin": ("lifecycle", "load a version now and at each start, and never evict it"),
    "unpin": ("lifecycle", "take pin or preload back"),
    "share": ("sharing", "let another tenant use an adapter, or list who may"),
    "unshare": ("sharing", "take a share back"),
    "ps": ("status", "show what runs and what is in memory"),
    "logs": ("logs", "show the audit log"),
    "keys": ("keys", "create, list and revoke API keys"),
    "tenants": ("tenants", "list, set and remove tenants and their quotas"),
    "sweep": ("sweep", "have the server verify its stored files and remove what nothing needs"),
}
"""Each command: its module in this folder, and what it is for. The module's `VERBS` adds its flags."""


def build_parser(full: Collection[str] = tuple(VERBS)) -> argparse.ArgumentParser:
    """The whole command line; of commands that are not in `full` the names only."""
    codes = "\n".join(f"  {code.value:<4}{meaning}" for code, meaning in MEANINGS.items())
    parser = argparse.ArgumentParser(
        prog="multilora",
        description="One frozen base model, many LoRA adapters in one batch.",
        epilog=f"exit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for verb, (module, text) in VERBS.items():
        description = text[0].upper() + text[1:] + "."
        added = verbs.add_parser(verb, help=text, description=description, allow_abbrev=False)
        if verb in full:
            import_module(f"server.cli.{module}").VERBS[verb](added)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, as `Exit` has them. Why it failed is one line on stderr."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in (
        "aiobotocore",
        "alembic",
        "botocore",
        "httpx",
        "httpx2",
        "huggingface_hub",
        "transformers",
    ):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without UTF-8 must not end a command
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except Failed as error:
        print(f"multilora: {clean(' '.join(str(error).split()))}", file=sys.stderr)
        return error.code
    except BrokenPipeError:
        # Python flushes stdout once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.BROKEN_PIPE
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


def _run(words: Sequence[str]) -> int:
    try:
        arguments = build_parser([*words[:1]]).parse_args(words)
        return int(arguments.run(arguments))
    finally:
        sys.stdout.flush()


class _Version(argparse.Action):
    """Reads the version when it is asked for only: that takes a while."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *given: object) -> None:
        from importlib.metadata import version

        print(f"multilora {version('multilora')}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
