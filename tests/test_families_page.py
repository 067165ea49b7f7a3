"""The page of families names those that are proved, and the defaults that training has."""

from __future__ import annotations

import re

import pytest

from tests.pages import ROOT
from tests.promises.test_parity import MORE, SIX
from tests.tiny import FAMILIES
from training.targets import _DEFAULTS

ROWS = {
    match["type"]: match["targets"]
    for match in re.finditer(
        r"^\| [^|]+ \| `(?P<type>\w+)` \| (?P<targets>[^|]+) \| [A-Z, ]+ \|$",
        (ROOT / "docs" / "families.md").read_text(),
        re.MULTILINE,
    )
}


def test_the_table_holds_exactly_the_families_of_the_parity_tests() -> None:
    assert set(ROWS) == {FAMILIES[name][0] for name in SIX + MORE}


@pytest.mark.parametrize("family", list(ROWS))
def test_its_defaults_are_those_of_training(family: str) -> None:
    names = next(names for types, names in _DEFAULTS.items() if family in types)
    assert tuple(re.findall(r"`(\w+)`", ROWS[family])) == names
