"""The page on the seed texts has a row for each item and error, and names what there is."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache

import pytest

from server.cli.main import VERBS
from server.cli.train import SUBVERBS
from tests.pages import ROOT

ITEMS, ERRORS = 74, 17
TEXT = (ROOT / "docs" / "seeds.md").read_text()
ROWS = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in re.findall(r"^\|.*\|$", TEXT, re.M)]
BY_NUMBER = {row[0].strip("| "): row for row in ROWS if re.fullmatch(r"E?\d+", row[0].strip("| "))}
_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@cache
def names_in(path: str) -> set[str]:
    """Names of the tests of a file."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_item_and_every_error_has_one_row() -> None:
    numbers = [row[0].strip("| ") for row in ROWS if re.fullmatch(r"E?\d+", row[0].strip("| "))]
    wanted = [*map(str, range(1, ITEMS + 1)), *(f"E{number}" for number in range(1, ERRORS + 1))]
    assert numbers == wanted


@pytest.mark.parametrize("number", BY_NUMBER)
def test_every_row_names_a_test_that_there_is(number: str) -> None:
    row = BY_NUMBER[number]
    assert len(row) == (5 if number.startswith("E") else 4), row
    shown = _TEST.findall(row[-1])
    assert shown, row
    for path, name in shown:
        assert (ROOT / path).is_file(), path
        assert not name or name in names_in(path), f"{path} has no {name}"


def test_pages_and_commands_that_are_named_exist() -> None:
    for page in re.findall(r"`(docs/[\w/.]+)`", TEXT):
        assert (ROOT / page).is_file(), page
    for command in re.findall(r"`multilora ([^`]+)`", TEXT):
        words = shlex.split(command)
        assert words[0] in VERBS, command
        assert words[0] != "train" or len(words) == 1 or words[1] in SUBVERBS, command


def test_every_test_of_a_number_is_named_in_its_row() -> None:
    for path in ("tests/training/test_seeds.py", "tests/training/plan/test_seeds_plan.py"):
        for name in names_in(path):
            if found := re.match(r"test_seed_(\d+)_", name):
                assert f"`{path}::{name}`" in BY_NUMBER[str(int(found[1]))][-1], name
