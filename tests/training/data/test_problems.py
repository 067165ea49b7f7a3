"""Errors of data: bounded text, and every kind in the docs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from training.data import DataError, Problem

ROOT = Path(__file__).parents[3]


def test_the_text_of_an_error_is_bounded_and_has_all_problems() -> None:
    error = DataError("d.jsonl", [Problem(line, "no") for line in range(1, 1001)])
    assert len(error.problems) == 1000
    assert str(error).startswith("d.jsonl: 1000 bad lines\n  line 1: no\n")
    assert str(error).endswith("\n  line 50: no\n  ... and 950 more")


def test_a_line_with_two_faults_is_one_bad_line() -> None:
    assert str(DataError("d", [Problem(3, "a"), Problem(3, "b")])).startswith("d: 1 bad line\n")


def kinds() -> Iterator[str]:
    """What the code calls a fault: the first word of `Fault` and `one`, the last of `Problem` and `_warn`."""
    places = {"Fault": 0, "one": 0, "Problem": 2, "_warn": 1}
    for path in (ROOT / "training" / "data").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in places:
                given = node.args[places[node.func.id] :][:1]
                yield from (str(word.value) for word in given if isinstance(word, ast.Constant))


def test_every_kind_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    found = set(kinds())
    assert len(found) > 30
    assert {kind for kind in found if f"`{kind}`" not in page} == set()
