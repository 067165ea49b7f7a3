"""Skills: what the base practises covers every symbol that adapters may need."""

from __future__ import annotations

import random

import pytest

from training.base.skills import SKILLS, answer, draw_system, draw_turn
from training.base.words import split_of


@pytest.mark.parametrize(
    ("tag", "wanted"),
    [
        ("up", "CAT"),
        ("rev", "tac"),
        ("spell", "c-a-t"),
        ("count", "3"),
        ("vowels", "ct"),
        ("js", '{"text": "cat"}'),
        ("greet", "Hello, Cat!"),
        ("no-such-tag", "cat"),
    ],
)
def test_answers(tag: str, wanted: str) -> None:
    assert answer(tag, "cat") == wanted


def test_turns_are_seeded_single_lines() -> None:
    turns = [draw_turn(random.Random(seed), "train") for seed in range(500)]
    assert turns == [draw_turn(random.Random(seed), "train") for seed in range(500)]
    assert not any("\n" in prompt + reply for prompt, reply in turns)


def test_no_adapter_tag_is_a_skill() -> None:
    assert "do" not in SKILLS


def test_every_printable_symbol_is_emitted() -> None:
    rng = random.Random(0)
    emitted = {symbol for _ in range(5000) for symbol in draw_turn(rng, "train")[1]}
    assert emitted >= {chr(code) for code in range(32, 127)}


def test_training_sees_no_held_out_word() -> None:
    rng = random.Random(1)
    words = [draw_turn(rng, "train")[0].rpartition(" ")[2] for _ in range(2000)]
    words += [word for _ in range(50) for word in draw_system(rng, "train").split() if word.islower()]
    ours = [word for word in words if word.isalpha() and word.isascii() and word.islower() and len(word) >= 3]
    fixed = {"are", "helpful", "one", "line", "brief", "work", "for", "the", "shop"}
    assert {split_of(word) for word in set(ours) - fixed} == {"train"}
