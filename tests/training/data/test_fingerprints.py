"""Fingerprints: the same rows have the same, others do not."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data import (
    ChatExample,
    Example,
    LabelledText,
    LabelledTokens,
    Message,
    PlainText,
    Preference,
    TextExample,
)
from training.data.fingerprints import Fingerprints, firsts, shared

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
NUMBERS = st.lists(st.integers(0, 5), max_size=12)


@given(NUMBERS, NUMBERS)
def test_places_are_those_that_a_search_finds(left: Sequence[int], right: Sequence[int]) -> None:
    seen = firsts(array("Q", left)).tolist()
    assert seen == [
        left.index(value) if left.index(value) < place else -1 for place, value in enumerate(left)
    ]
    there = shared(array("Q", left), array("Q", right)).tolist()
    assert there == [right.index(value) if value in right else -1 for value in left]


@pytest.mark.parametrize(
    "rows",
    [
        [TextExample("ab", "c"), TextExample("a", "bc"), TextExample("", "abc"), PlainText("abc")],
        [LabelledText("a", "x"), LabelledText("a", "y")],
        [LabelledTokens(("a", "b"), ("x", "y")), LabelledTokens(("a", "b"), ("y", "x"))],
        [
            ChatExample((Message("user", "a"), Message("assistant", "b"))),
            ChatExample((Message("user", "a"), Message("assistant", "b", weight=0))),
            ChatExample((Message("system", "a"), Message("assistant", "b"))),
            ChatExample((Message("user", "a"), Message("assistant", "b", tool_calls=(CALL,)))),
            ChatExample((Message("user", "a"), Message("assistant", "b")), (CALL,)),
        ],
        [Preference("a", "b", "c"), Preference("a", "c", "b"), Preference("a", "b", "d")],
    ],
)
def test_other_rows_have_other_fingerprints(rows: Sequence[Example]) -> None:
    prints = Fingerprints()
    for line, row in enumerate(rows):
        prints.add(line, row)
    assert len(set(prints.exact)) == len(set(prints.loose)) == len(rows)


def test_case_width_and_spaces_are_no_difference_to_the_loose_ones() -> None:
    prints = Fingerprints()
    prints.add(1, LabelledText("Straße  1", "a"))
    prints.add(2, LabelledText(" STRASSE 1\n", "a"))  # digits of full width
    prints.add(3, LabelledText("strasse 1", "b"))
    assert len(set(prints.exact)) == 3
    assert prints.loose[0] == prints.loose[1] != prints.loose[2]
    assert len(set(prints.inputs)) == 1
