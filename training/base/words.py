"""Made-up words, split for ever into those that training may see and those that measure it.

The split depends on the word alone, so no base, adapter, seed or test can train on a held-out word.
"""

from __future__ import annotations

import random
import zlib
from typing import Literal

Split = Literal["train", "held-out"]

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ONSETS: list[str] = [*"bcdfghjklmnprstvwz", "bl", "br", "ch", "cl", "cr", "dr", "fl", "fr", "gl"]
_ONSETS += ["gr", "pl", "pr", "sh", "sl", "sp", "st", "th", "tr"]
_VOWELS: list[str] = [*"aeiouaeiou", "ai", "ea", "ou"]
_CODAS: list[str] = ["", "", "", "", *"nrstlmdkpgxb", "ck", "nd", "nt", "rt", "st"]
_MIN, _MAX = 3, 10


def split_of(word: str) -> Split:
    """Which side a word is on: about one in ten is held out."""
    return "held-out" if zlib.crc32(word.lower().encode()) % 10 == 0 else "train"


def draw_word(rng: random.Random, split: Split) -> str:
    """A lower-case word of 3 to 10 letters: two in three can be spoken, the rest are any letters."""
    while True:
        word = _spoken(rng) if rng.random() < 0.67 else _any_letters(rng)
        if _MIN <= len(word) <= _MAX and split_of(word) == split:
            return word


def _spoken(rng: random.Random) -> str:
    syllables = rng.choice((1, 2, 2, 2, 3, 3, 4))
    parts = (rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables))
    return "".join(parts) + rng.choice(_CODAS)


def _any_letters(rng: random.Random) -> str:
    return "".join(rng.choice(_LETTERS) for _ in range(rng.randint(_MIN, _MAX)))
