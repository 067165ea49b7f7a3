"""Bytes to JSON: what no line may be, in bounded memory."""

from __future__ import annotations

import gzip
import io

import pytest

from training.data import RowError, lines
from training.data.lines import decode, read_lines


@pytest.mark.parametrize(
    ("raw", "kind", "says"),
    [
        (b"{", "invalid_json", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        (b"{} {}", "invalid_json", "Extra data at column 4"),
        (b"[{}", "invalid_json", "if the file is one JSON array, write each of its objects on a line"),
        (b'{"a": NaN}', "invalid_json", "NaN is not a value of JSON"),
        (b'{"a": 1, "a": 2}', "invalid_json", "the key 'a' is there twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid_json", "not JSON: Exceeds the limit"),
        (b"[" * 100_000, "invalid_json", "nested too deeply"),
        (b'{"a": "\xff"}', "invalid_utf8", "not UTF-8: byte 8 is 0xff"),
        (b'{"a": "\\ud83d"}', "invalid_utf8", "half a character"),
        ("{}".encode("utf-16"), "invalid_utf8", "looks like UTF-16"),
        (gzip.compress(b"{}", mtime=0), "invalid_utf8", "looks like gzip"),
        (None, "line_too_long", "longer than"),
    ],
)
def test_each_fault_has_its_kind_and_reason(raw: bytes | None, kind: str, says: str) -> None:
    with pytest.raises(RowError) as caught:
        decode(raw)
    assert [fault.kind for fault in caught.value.faults] == [kind]
    assert says in str(caught.value)


def test_a_whole_character_of_two_escapes_is_fine() -> None:
    assert decode(b'"\\ud83d\\ude00"') == "😀"


def test_lines_are_numbered_with_the_blank_ones() -> None:
    file = io.BytesIO(b"\xef\xbb\xbfone\r\n\n  \ntwo\rstill\xe2\x80\xa8two\nlast")
    assert list(read_lines(file)) == [
        (1, b"one\r\n"),
        (4, b"two\rstill\xe2\x80\xa8two\n"),
        (5, b"last"),
    ]


def test_a_line_that_is_too_long_is_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 10)
    fits, long = b"x" * 10, b"y" * 95
    file = io.BytesIO(b"\n".join([fits, long, b"z", long]))
    assert [(number, raw and raw.strip()) for number, raw in read_lines(file)] == [
        (1, fits),
        (2, None),
        (3, b"z"),
        (4, None),
    ]
