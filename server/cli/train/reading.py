"""What the sub-verbs that read training data have in common: how rows are read, and with whose tokenizer."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from server.cli.exits import Failed

if TYPE_CHECKING:
    from training.data import ChatTokenizer

MOST_REASON = 300
"""Characters of a reason that is a library's."""

_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)
"""Files of which a folder with a tokenizer has one."""


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the file, and the flags for how its rows are read."""
    from training.data.examples import FormatName
    from training.spec import TaskName

    parser.add_argument("file", metavar="FILE", type=Path, help="JSON lines: one example on each")
    parser.add_argument(
        "--model", metavar="MODEL", help="base: a folder or a hub id (default: the shipped one)"
    )
    parser.add_argument(
        "--format", choices=get_args(FormatName), help="what the rows are (default: their keys tell)"
    )
    parser.add_argument("--task", choices=get_args(TaskName), help="what to train (default: the rows tell)")
    parser.add_argument(
        "--max-length",
        metavar="TOKENS",
        type=length,
        help="where rows are cut (default: what the base reads at most, as a run does)",
    )


def length(text: str) -> int:
    """An argument that is a number of tokens."""
    if not text.isascii() or not text.isdigit() or not 2 <= int(text) <= 2**31:
        raise argparse.ArgumentTypeError(f"takes a whole number from 2, not {text!r}")
    return int(text)


def cut_at(arguments: argparse.Namespace) -> int | None:
    """Tokens at which rows are cut; None: they are not."""
    from training.base import MODEL_DIR
    from training.plan.facts import most_tokens

    if arguments.max_length is not None:
        return int(arguments.max_length)
    try:
        return most_tokens(arguments.model or MODEL_DIR)
    except (OSError, ValueError):  # a tokenizer alone
        return None


def load_tokenizer(model: str | None) -> ChatTokenizer:
    """The tokenizer of a base.

    Raises:
        Failed: it can't be loaded.
    """
    from training.base import MODEL_DIR

    source = Path(model or MODEL_DIR)
    if source.is_dir() and not any((source / name).is_file() for name in _TOKENIZERS):
        raise Failed(f"--model: {model} holds no tokenizer")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoTokenizer

    try:
        tokenizer: ChatTokenizer = AutoTokenizer.from_pretrained(model or MODEL_DIR)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise Failed(f"--model: no tokenizer could be loaded from {model}: {reason[:MOST_REASON]}") from None
    return tokenizer


def unreadable(error: OSError, path: Path) -> Failed:
    """Why a file can't be read, as the end of a command."""
    return Failed(f"{error.filename or path}: {error.strerror or error}")
