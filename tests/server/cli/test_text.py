"""Tables, sizes and times for a terminal."""

from __future__ import annotations

import json

import pytest

from server.cli.text import as_json, as_numbers, as_size, as_time, clean, fields, table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("A", "LONG"), [("abc", 1), ("", None)]) == "A    LONG\nabc  1\n-    -"


def test_wide_and_combining_characters_keep_columns_straight() -> None:
    lines = table(("A", "B"), [("漢字", "x"), ("e\u0301", "y"), ("abcd", "z")]).splitlines()
    assert lines == ["A     B", "漢字  x", "e\u0301     y", "abcd  z"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("two\nlines", "two\\nlines"),
        ("\u202eright to left", "\\u202eright to left"),
        ("\ud800", "\\ud800"),
        ("naïve 漢字", "naïve 漢字"),
        (None, ""),
    ],
)
def test_nothing_can_steer_the_terminal(text: object, shown: str) -> None:
    assert clean(text) == shown
    assert shown in table(("A",), [(text,)])


def test_json_is_ascii_and_means_the_same() -> None:
    value = {"a": "\x1b[2J 漢 \x9b"}
    assert as_json(value).isascii()
    assert "\x1b" not in as_json(value)
    assert json.loads(as_json(value)) == value


def test_fields_without_a_value_are_left_out() -> None:
    assert (
        fields([("a", 0), ("none", None), ("empty", ""), ("long name", "b")]) == "a          0\nlong name  b"
    )


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (293_888, "287 KiB"),
        (9_856_614, "9.4 MiB"),
        (2**40, "1.0 TiB"),
    ],
)
def test_sizes(size: int, shown: str) -> None:
    assert as_size(size) == shown


def test_times() -> None:
    assert as_time(0) == "1970-01-01 00:00:00Z"
    assert as_time(1e300) == "1e+300"
    assert as_time(None) == "-"


@pytest.mark.parametrize(
    ("numbers", "shown"), [((), ""), ((3,), "3"), ((3, 1, 2), "1-3"), ((1, 2, 4, 7, 8, 9, 9), "1-2,4,7-9")]
)
def test_runs_of_numbers(numbers: tuple[int, ...], shown: str) -> None:
    assert as_numbers(numbers) == shown
