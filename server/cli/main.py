"""`multilora`: each verb calls the same code as the API."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version

from pydantic import ValidationError

from server.cli import check, combine, merge, serve
from server.settings import ENV_PREFIX, flags


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="multilora",
        description="One frozen base model, many LoRA adapters in one batch.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"multilora {version('multilora')}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve.add_parser(verbs)
    check.add_parser(verbs)
    merge.add_parser(verbs)
    combine.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 when it failed for a reason it prints, 2 for a wrong command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("httpx", "httpx2", "huggingface_hub", "transformers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except ValidationError as error:
        for problem in error.errors():
            field = str(problem["loc"][0]) if problem["loc"] else ""
            name = f"--{field.replace('_', '-')}" if field in flags() else f"{ENV_PREFIX}{field.upper()}"
            print(f"multilora: {name}: {problem['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
