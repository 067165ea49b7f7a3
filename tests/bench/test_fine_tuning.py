"""Answers of a model are counted as right to the letter, whatever order they come in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from bench.fine_tuning import _exact
from bench.targets import targets
from training.tasks import make_examples


def test_exact_match() -> None:
    cases = make_examples("shout", 40, split="held-out")
    right = {case.prompt: case.completion for case in cases[:30]}

    def create(prompt: list[str], **asked: Any) -> Any:
        found = [
            SimpleNamespace(index=index, text=right.get(text, text)) for index, text in enumerate(prompt)
        ]
        return SimpleNamespace(choices=found[::-1])

    client: Any = SimpleNamespace(completions=SimpleNamespace(create=create))
    assert _exact(client, "shout", cases) == 0.75


def test_every_task_has_its_rows() -> None:
    runs = [{"training": 40.0, "seconds_to_live": 50.0, "base": 0.0, "adapter": 0.85}]
    rows = [row for row in targets() if row.measure == "fine-tuning" and "json" in row.text]
    found = [row.reached(row.value({"json": runs})) for row in rows]
    assert found == [True, None, True, False]
