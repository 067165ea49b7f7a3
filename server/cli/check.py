"""`multilora check`: what an adapter is and does on a base, and how far the served path is from PEFT."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags, and what the command does."""
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="adapter folder")
    parser.add_argument("--model", required=True, help="base model: a folder or a hub id")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "bfloat16", "float16", "float32"],
        help="type to serve and to compare in",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report. Returns 0; 1 where the adapter is refused or could not be compared."""
    from adapters.errors import AdapterError
    from server.engine.loading import UnsupportedModel
    from server.proof.report import as_table, check_adapter

    try:
        report = check_adapter(arguments.model, arguments.adapter, arguments.dtype)
    except (UnsupportedModel, AdapterError, OSError) as error:
        print(f"multilora: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2) if arguments.json else as_table(report))
    return 0 if report["proof"]["status"] in ("proved", "not_covered") else 1


VERBS = {"check": add_flags}
