"""What may be a name, and what a reference means."""

from __future__ import annotations

import pytest

from adapters.errors import InvalidName
from adapters.registry.names import check_new_name, parse_ref


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tone", ("tone", None)),
        ("tone@3", ("tone", 3)),
        ("0a.b_c-d@12", ("0a.b_c-d", 12)),
        ("latest", ("latest", None)),
    ],
)
def test_references(text: str, expected: tuple[str, int | None]) -> None:
    assert parse_ref(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@1",
        "tone@",
        "tone@0",
        "tone@01",
        "tone@-1",
        "tone@1@2",
        "tone@v1",
        "Tone",
        "../x",
        "a/b",
        "a b",
        "tone\n",
    ],
)
def test_not_references(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_ref(text)


@pytest.mark.parametrize("name", ["a", "tone", "0.5-x_y", "vision", "v1a", "a" * 63])
def test_new_names(name: str) -> None:
    check_new_name(name, "My-Base")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Tone", "use 'tone'"),
        ("latest", "reserved"),
        ("base", "reserved"),
        ("v12", "reserved"),
        ("my-base", "the base model's name"),
        ("", "must be 1 to 63"),
        ("a" * 64, "must be 1 to 63"),
        (".hidden", "must be 1 to 63"),
        ("a/b", "must be 1 to 63"),
        ("a@1", "must be 1 to 63"),
        ("tone\n", "must be 1 to 63"),
        ("ｔone", "must be 1 to 63"),
    ],
)
def test_refused_names(name: str, message: str) -> None:
    with pytest.raises(InvalidName) as caught:
        check_new_name(name, "My-Base")
    assert message in str(caught.value)
