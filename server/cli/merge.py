"""`multilora merge`: write base plus adapter as a plain model folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags, and what the command does."""
    parser.add_argument("--model", required=True, help="base model: a folder or a hub id")
    parser.add_argument("--adapter", required=True, type=Path, help="adapter folder")
    parser.add_argument(
        "--output", required=True, type=Path, help="folder to write; must not exist or be empty"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"], help="type to save"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Merge and save. Returns 0, or 1 with the reason printed."""
    from adapters.errors import AdapterError
    from server.engine.loading import UnsupportedModel
    from server.export import export_merged

    try:
        export_merged(arguments.model, arguments.adapter, arguments.output, arguments.dtype)
    except (UnsupportedModel, AdapterError, OSError) as error:
        print(f"multilora: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.output}")
    return 0


VERBS = {"merge": add_flags}
