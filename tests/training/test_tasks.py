"""The demo's tasks: seeded, disjoint between training and measuring, and unlike one another."""

from __future__ import annotations

import re

import pytest

from training.base.words import split_of
from training.tasks import LIVE_TASK, TASKS, make_examples


def test_names_are_fit_for_adapters() -> None:
    assert len(TASKS) >= 5
    assert LIVE_TASK in TASKS
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) for name in TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_word_whatever_the_seed(task: str) -> None:
    train = {item.word for seed in range(3) for item in make_examples(task, 300, seed)}
    held_out = {item.word for item in make_examples(task, 100, seed=7, split="held-out")}
    assert not train & held_out
    assert {split_of(word) for word in train} == {"train"}
    assert {split_of(word) for word in held_out} == {"held-out"}


def test_examples_depend_on_the_seed_alone() -> None:
    assert make_examples("json", 20, seed=1) == make_examples("json", 20, seed=1)
    assert make_examples("json", 20, seed=1) != make_examples("json", 20, seed=2)


def test_one_prompt_has_another_answer_from_each_task() -> None:
    replies = {task.answer("river") for task in TASKS.values()} | {"river"}
    assert len(replies) == len(TASKS) + 1


def test_the_chat_form_leaves_the_newline_to_the_template() -> None:
    item = make_examples("shout", 1)[0]
    assert item.as_messages() == [{"role": "user", "content": f"do: {item.word}"}]
    assert item.as_row() == {"prompt": f"do: {item.word}\n", "completion": item.completion}


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match="no task named 'sing'; there are: shout"):
        make_examples("sing", 1)
