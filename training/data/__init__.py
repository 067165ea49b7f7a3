"""Training data: JSON lines in, checked examples out, then tokens with the mask of the loss.

A file is either right or refused with every bad line named at once.
"""

from __future__ import annotations

from training.data.advice import auto_epochs
from training.data.check import check_file
from training.data.encode import Encoded, encode, label_names, tokenize
from training.data.examples import (
    ROLES,
    ChatExample,
    Example,
    FormatName,
    LabelledText,
    LabelledTokens,
    Message,
    PlainText,
    Preference,
    TextExample,
)
from training.data.pairs import EncodedPairs, Pair, encode_pairs
from training.data.problems import DataError, Fault, Problem, RowError
from training.data.reading import parse_lines, read_jsonl
from training.data.report import DataReport
from training.data.rows import parse_row
from training.data.tokens import IGNORE, ChatTokenizer, Tokens

__all__ = [
    "IGNORE",
    "ROLES",
    "ChatExample",
    "ChatTokenizer",
    "DataError",
    "DataReport",
    "Encoded",
    "EncodedPairs",
    "Example",
    "Fault",
    "FormatName",
    "LabelledText",
    "LabelledTokens",
    "Message",
    "Pair",
    "PlainText",
    "Preference",
    "Problem",
    "RowError",
    "TextExample",
    "Tokens",
    "auto_epochs",
    "check_file",
    "encode",
    "encode_pairs",
    "label_names",
    "parse_lines",
    "parse_row",
    "read_jsonl",
    "tokenize",
]
