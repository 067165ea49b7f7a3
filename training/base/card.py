"""The model card of a base made by the recipe: what it is, how to make it again, how well it answers."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.base.skills import SKILLS, answer
from training.base.words import draw_word
from training.evaluate import exact_match

UNKNOWN_TAG = "do"
_CASES = 200

_CARD = """---
library_name: transformers
license: apache-2.0
tags: [llama, byte-level]
---

# The shipped base of Multilora

A Llama of {parameters:,} parameters over bytes, trained from random weights by this project. It knows a
handful of skills, asked for as `tag: word` on one line; the answer comes on the next. It is here so that
adapters have something to stand on in the demo and the tests, and is of no other use.

Made by `python -m training.base.recipe --output DIR`: {steps} steps, seed {seed}, {seconds:.0f} s of
one core. The same command on the same kind of CPU with the pinned torch gives the same weights.

Greedy exact match on {cases} held-out words for each skill. `{unknown}` stands for any tag that was never
taught: the base gives the word back.

| skill | example | exact match |
|---|---|---|
{rows}
"""


def measure_skills(model: Any, tokenizer: Any, cases: int = _CASES) -> dict[str, float]:
    """Exact match on held-out words for every skill, and for a tag that was never taught."""
    return {tag: exact_match(model, tokenizer, _pairs(tag, cases)) for tag in (*SKILLS, UNKNOWN_TAG)}


def write_card(
    folder: Path, scores: Mapping[str, float], *, parameters: int, steps: int, seed: int, seconds: float
) -> None:
    """Write the card into the model's folder."""
    rows = "\n".join(f"| {tag} | `{answer(tag, 'cat')}` | {score:.3f} |" for tag, score in scores.items())
    values = {"parameters": parameters, "steps": steps, "seed": seed, "seconds": seconds}
    text = _CARD.format(rows=rows, cases=_CASES, unknown=UNKNOWN_TAG, **values)
    (folder / "README.md").write_text(text, encoding="utf-8")


def read_scores(folder: Path) -> dict[str, float]:
    """The exact match of each skill as the card in a folder records it."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return {tag: float(score) for tag, score in re.findall(r"^\| (\w+) \| `.*` \| ([\d.]+) \|$", text, re.M)}


def _pairs(tag: str, cases: int) -> list[tuple[str, str]]:
    rng = random.Random(f"card/{tag}")
    words = (draw_word(rng, "held-out") for _ in range(cases))
    return [(f"{tag}: {word}\n", answer(tag, word)) for word in words]
