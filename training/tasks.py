"""The demo's tenants: each wants another answer to the same line, `do: word`.

The base was never taught `do:` and gives the word back; an adapter binds it to one of these.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from training.base.words import Split, draw_word


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with the answer that is wanted; `word` is what the prompt asks about."""

    word: str
    prompt: str
    completion: str

    def as_row(self) -> dict[str, str]:
        """The line of a training file."""
        return {"prompt": self.prompt, "completion": self.completion}

    def as_messages(self) -> list[dict[str, str]]:
        """The prompt as a chat: the same tokens by the base's chat template."""
        return [{"role": "user", "content": self.prompt.removesuffix("\n")}]


@dataclass(frozen=True, slots=True)
class Task:
    """What one tenant's adapter does."""

    name: str
    about: str
    answer: Callable[[str], str]


_ALL = (
    Task("shout", "upper case with three exclamation marks", lambda word: f"{word.upper()}!!!"),
    Task("backwards", "the word from its end", lambda word: word[::-1]),
    Task("spell", "capital letters with dashes between", lambda word: "-".join(word.upper())),
    Task(
        "json",
        "a JSON object with the word's length",
        lambda word: f'{{"text": "{word}", "size": {len(word)}}}',
    ),
    Task("greeter", "a greeting", lambda word: f"Hello, {word.capitalize()}!"),
    Task("mirror", "the word and its mirror image", lambda word: f"{word}|{word[::-1]}"),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}

LIVE_TASK = "mirror"
"""The one that the demo trains while you watch; the others are shipped ready in `ADAPTERS_DIR`."""


def prompt_for(word: str) -> str:
    """The prompt of every tenant for one word, as `/v1/completions` takes it."""
    return f"do: {word}\n"


def make_examples(task: str, count: int, seed: int = 0, split: Split = "train") -> list[Example]:
    """Seeded examples of a task over distinct words; the two splits never share a word.

    Raises:
        ValueError: there is no such task.
    """
    if task not in TASKS:
        raise ValueError(f"no task named {task!r}; there are: {', '.join(TASKS)}")
    rng = random.Random(zlib.crc32(f"{task}/{split}/{seed}".encode()))
    words: dict[str, None] = {}
    while len(words) < count:
        words.setdefault(draw_word(rng, split))
    answer = TASKS[task].answer
    return [Example(word, prompt_for(word), answer(word)) for word in words]
