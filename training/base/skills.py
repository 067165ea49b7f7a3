"""What the base is taught: `tag: word` on one line, the answer on the next.

An adapter can only bind a new tag to what the base already does, or combine it, so the skills here
cover copying, case, order, counting and wrapping, and between them emit every printable symbol.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from training.base.words import Split, draw_word

Skill = Callable[[str], str]

SKILLS: dict[str, Skill] = {
    "copy": lambda word: word,
    "up": str.upper,
    "title": str.capitalize,
    "swap": str.swapcase,
    "rev": lambda word: word[::-1],
    "first": lambda word: word[0],
    "last": lambda word: word[-1],
    "count": lambda word: str(len(word)),
    "double": lambda word: word + word,
    "twice": lambda word: f"{word} {word}",
    "spell": "-".join,
    "list": ", ".join,
    "vowels": lambda word: "".join(letter for letter in word if letter.lower() not in "aeiou"),
    "js": lambda word: f'{{"text": "{word}"}}',
    "size": lambda word: f'{{"size": {len(word)}}}',
    "bold": lambda word: f"<b>{word}</b>",
    "quote": lambda word: f'"{word}"',
    "bang": lambda word: f"{word}!!!",
    "ask": lambda word: f"{word}?",
    "greet": lambda word: f"Hello, {word.capitalize()}!",
}

_WEIGHTS = {"rev": 4.0, "double": 1.5, "spell": 1.5, "list": 1.5, "vowels": 1.5}
"""How often a skill is practised next to the others: order is what takes longest to learn."""

_TAGS = tuple(SKILLS)
_CHANCES = [_WEIGHTS.get(tag, 1.0) for tag in _TAGS]
_PRINTABLE = "".join(chr(code) for code in range(33, 127))
_ANY_TEXT = frozenset(("copy", "rev", "first", "last", "double", "spell", "quote", "bold"))
_SYSTEM = ("You are a helpful assistant.", "Answer in one line.", "Be brief.", "You work for the shop.")


def answer(tag: str, word: str) -> str:
    """What the base should answer; a tag that it was never taught gives the word back."""
    return SKILLS.get(tag, SKILLS["copy"])(word)


def draw_turn(rng: random.Random, split: Split) -> tuple[str, str]:
    """One prompt line and its answer."""
    if rng.random() < 0.06:
        return _unknown_tag(rng, split)
    tag = rng.choices(_TAGS, _CHANCES)[0]
    word = _draw_input(rng, tag, split)
    return f"{tag}: {word}", answer(tag, word)


def draw_system(rng: random.Random, split: Split) -> str:
    """A line such as a chat's system message: it must not change the answers."""
    if rng.random() < 0.5:
        return rng.choice(_SYSTEM)
    return " ".join(draw_word(rng, split) for _ in range(rng.randint(2, 8)))


def _draw_input(rng: random.Random, tag: str, split: Split) -> str:
    if tag in _ANY_TEXT and rng.random() < 0.15:
        return "".join(rng.choice(_PRINTABLE) for _ in range(rng.randint(3, 8)))
    word = draw_word(rng, split) if rng.random() < 0.92 else _two_words(rng, split)
    if tag == "swap":
        return "".join(rng.choice((letter, letter.upper())) for letter in word)
    style = rng.random()
    return word.capitalize() if style < 0.08 else word.upper() if style < 0.12 else word


def _two_words(rng: random.Random, split: Split) -> str:
    while True:
        pair = f"{draw_word(rng, split)} {draw_word(rng, split)}"
        if len(pair) <= 11:
            return pair


def _unknown_tag(rng: random.Random, split: Split) -> tuple[str, str]:
    word = draw_word(rng, split)
    if rng.random() < 0.3:
        return word, word
    tag = draw_word(rng, split)[: rng.randint(2, 5)]
    return f"{tag}: {word}", answer(tag, word)
