"""`multilora train preview`: rows as the model gets them, trained tokens bright and masked ones dim."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from server.cli.exits import Failed
from server.cli.text import clean
from server.cli.train.reading import add_reading, cut_at, load_tokenizer, unreadable

if TYPE_CHECKING:
    from training.data.preview import Part, Piece, Preview

_TRAINED, _MASKED, _END = "\x1b[1;92m", "\x1b[2m", "\x1b[0m"
_SPECIAL = "\x1b[7m"
_MARKS = "\\[]{}|"
_VISIBLE = {" ": "·", "\t": "→", "\n": "⏎", "\r": "␍"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags, and what the command does."""
    parser.description = (
        "Show the first rows token by token, as training gives them to the model: trained tokens bright, the "
        "others dim, special tokens reversed. Without colors trained tokens stand in [brackets] and special "
        "ones in {braces}, with | between two tokens. Spaces are shown as ·, line ends as ⏎."
    )
    add_reading(parser)
    parser.add_argument(
        "--rows", metavar="N", type=count, default=3, help="how many to show (default: %(default)s)"
    )
    parser.add_argument("--no-color", action="store_true", help="brackets instead, as where no terminal is")
    parser.set_defaults(run=run)


def count(text: str) -> int:
    """An argument that is a number of rows."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"takes a whole number from 1, not {text!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Print the rows. Returns 0; raises where one of them can't be used."""
    from training.data.inspection import Setting
    from training.data.preview import preview_file

    tokenizer = load_tokenizer(arguments.model)
    setting = Setting(tokenizer, arguments.task, cut_at(arguments), arguments.format)
    colors = not arguments.no_color and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    shown = bad = 0
    try:
        for preview in preview_file(arguments.file, setting, arguments.rows):
            print(as_text(preview, colors), end="\n\n")
            shown += 1
            bad += bool(preview.faults)
    except OSError as error:
        raise unreadable(error, arguments.file) from None
    if not shown:
        raise Failed(f"{arguments.file}: there is no example in this file")
    if bad:
        raise Failed(f"{arguments.file}: {bad} of the rows shown can't be used; train check says all of them")
    return 0


def as_text(preview: Preview, colors: bool) -> str:
    """One row, a line above the tokens of each part."""
    blocks = [f"line {preview.line}: not usable: {clean(fault)}" for fault in preview.faults]
    for part in preview.parts:
        name = f", {part.name}" if part.name else ""
        trained = f"label {clean(preview.label)}" if preview.label else f"{part.trained} trained"
        lost = f", {part.cut} more cut off" if part.cut else ""
        head = f"line {preview.line}{name}: {part.tokens} tokens, {trained}, {part.special} special{lost}"
        blocks.append(f"{head}\n{_colored(part) if colors else _bracketed(part)}")
    return "\n".join(blocks)


def _colored(part: Part) -> str:
    shown = []
    for piece in part.pieces:
        style = (_TRAINED if piece.trained else _MASKED) + (_SPECIAL if piece.special else "")
        shown.append(f"{style}{_visible(piece)}{_END}{_after(piece)}")
    return "".join(shown)


def _bracketed(part: Part) -> str:
    """`asked|by[one|who]`: a bracket where the mask changes, a bar between other tokens."""
    shown, trained, end = "", False, ""
    for number, piece in enumerate(part.pieces):
        text = _visible(piece)
        if piece.special:
            text = f"{{{text}}}"
        else:
            text = "".join(f"\\{char}" if char in _MARKS else char for char in text)
        if piece.trained == trained:
            shown += "|" * bool(number) + end + text
        else:
            shown += f"{end}[{text}" if piece.trained else f"]{end}{text}"
        trained, end = piece.trained, _after(piece)
    return shown + "]" * trained


def _visible(piece: Piece) -> str:
    """The text of a token on one line, and its class."""
    text = clean("".join(_VISIBLE.get(char, char) for char in piece.text))
    return f"{text}/{clean(piece.label)}" if piece.label else text


def _after(piece: Piece) -> str:
    """A line ends where the text's does."""
    return "\n" * piece.text.endswith("\n")
