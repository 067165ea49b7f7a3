"""`multilora train check`: every error of a file of training examples at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.cli.exits import Failed


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags, and what the command does."""
    parser.add_argument("file", metavar="FILE", type=Path, help="JSON lines with the examples")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what is wrong. Returns 0; 1 where something is."""
    from training.data import DataError, read_jsonl

    try:
        examples = read_jsonl(arguments.file)
    except DataError as error:
        print(error)
        return 1
    except OSError as error:
        raise Failed(f"{arguments.file}: {error.strerror}") from None
    print(f"{arguments.file}: {len(examples)} examples")
    return 0
