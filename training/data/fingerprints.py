"""Which rows are the same, from eight bytes of each: a file of any size fits into memory so."""

from __future__ import annotations

import json
import unicodedata
from array import array
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from training.data.examples import (
    ChatExample,
    Example,
    LabelledText,
    LabelledTokens,
    Message,
    PlainText,
    Preference,
    TextExample,
)

if TYPE_CHECKING:
    import numpy as np


class Fingerprints:
    """Of the rows of one file, in order.

    Attributes:
        exact: of all that a row says.
        loose: of the same without case, width of characters and number of spaces.
        inputs: of what a labelled row asks, without its labels, loosely.
    """

    def __init__(self) -> None:
        self.lines, self.exact, self.loose, self.inputs = (array("Q") for _ in range(4))

    def add(self, line: int, example: Example) -> None:
        """One more row."""
        asked, answered = texts(example)
        loose = [normalised(text) for text in (*asked, *answered)]
        self.lines.append(line)
        self.exact.append(_hash([*asked, *answered]))
        self.loose.append(_hash(loose))
        if isinstance(example, LabelledText | LabelledTokens):
            self.inputs.append(_hash(loose[: len(asked)]))


def firsts(values: array[int]) -> np.ndarray[Any, Any]:
    """For each value the index of the same value before it, the first one; -1 where there is none."""
    import numpy as np

    found = _numbers(values)
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    before = first[inverse]
    return np.where(before == np.arange(len(found)), -1, before)


def shared(values: array[int], others: array[int]) -> np.ndarray[Any, Any]:
    """For each value the index of the same value among the others, the first one; -1 where there is none."""
    import numpy as np

    known, first = np.unique(_numbers(others), return_index=True)
    found = _numbers(values)
    if not len(known):
        return np.full(len(found), -1)
    places = np.minimum(np.searchsorted(known, found), len(known) - 1)
    return np.where(known[places] == found, first[places], -1)


def _numbers(values: array[int]) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.frombuffer(values, dtype=np.uint64) if values else np.empty(0, dtype=np.uint64)


def texts(example: Example) -> tuple[list[str], list[str]]:
    """All that a row says, what it asks apart from what it answers."""
    if isinstance(example, TextExample):
        return [example.prompt], [example.completion]
    if isinstance(example, PlainText):
        return [], [example.text]
    if isinstance(example, LabelledText):
        return [example.text], [example.label]
    if isinstance(example, LabelledTokens):
        return list(example.tokens), list(example.labels)
    if isinstance(example, ChatExample):
        return [_json(example.tools)], [text for message in example.messages for text in _said(message)]
    assert isinstance(example, Preference)
    asked = [_json(example.tools), *_spoken(example.prompt)]
    return asked, ["chosen", *_spoken(example.chosen), "rejected", *_spoken(example.rejected)]


def _spoken(given: str | tuple[Message, ...]) -> list[str]:
    return [given] if isinstance(given, str) else [text for message in given for text in _said(message)]


def _said(message: Message) -> tuple[str, ...]:
    calls = _json([call["function"] for call in message.tool_calls]) if message.tool_calls else ""
    return f"{message.role} {message.weight}", message.name or "", message.content, calls


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True) if value else ""


def normalised(text: str) -> str:
    """A text without what people would not call a difference."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _hash(parts: list[str]) -> int:
    # The length before each part keeps ("ab", "c") apart from ("a", "bc").
    digest = blake2b(digest_size=8)
    for part in parts:
        data = part.encode()
        digest.update(b"%d:" % len(data) + data)
    return int.from_bytes(digest.digest(), "little")
