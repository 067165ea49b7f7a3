"""Objects only, and each key once."""

from __future__ import annotations

import pytest

from adapters.checkpoint.strict_json import parse_object
from adapters.errors import InvalidAdapter


def test_object() -> None:
    assert parse_object(b'{"a": [1, 2.5, null], "b": {"a": "\xc3\xa9"}}', "it") == {
        "a": [1, 2.5, None],
        "b": {"a": "é"},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "it is not valid JSON"),
        (b"{} {}", "it is not valid JSON"),
        (b"3", "it must be a JSON object, not int"),
        (b"\xff", "it is not UTF-8 text"),
        (b'{"a": {"b": 1, "b": 1}}', "key 'b' is given twice"),
        (b'{"a": Infinity}', "Infinity is not a JSON number"),
        (b'{"a":' * 100_000, "it is nested too deeply"),
    ],
)
def test_refused(text: bytes, message: str) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        parse_object(text, "it")
    assert message in str(caught.value)
