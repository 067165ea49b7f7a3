"""What may be a name, and what a reference means."""

from __future__ import annotations

import pytest

from adapters.errors import InvalidName
from adapters.registry.names import Ref, check_alias, check_new_name, check_tenant, parse_ref


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tone", Ref(None, "tone")),
        ("tone@3", Ref(None, "tone", 3)),
        ("0a.b_c-d@12", Ref(None, "0a.b_c-d", 12)),
        ("latest", Ref(None, "latest")),
        ("tone@prod", Ref(None, "tone", alias="prod")),
        ("tone@v1", Ref(None, "tone", alias="v1")),
        ("acme/tone", Ref("acme", "tone")),
        ("acme/tone@3", Ref("acme", "tone", 3)),
        ("a-1/tone@prod", Ref("a-1", "tone", alias="prod")),
    ],
)
def test_references(text: str, expected: Ref) -> None:
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
        "tone@1234567890",
        "tone@Prod",
        "Tone",
        "../x",
        "/tone",
        "acme/",
        "acme//tone",
        "a.b/tone",
        "a/b/c",
        "acme/@1",
        "a b",
        "tone\n",
        "acme\n/tone",
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Prod", "alias 'Prod' has capital letters; use 'prod'"),
        ("latest", "alias 'latest' is reserved; choose another"),
        ("3", "alias '3' is reserved"),
        ("v3", "alias 'v3' is reserved"),
        ("a b", "alias 'a b' must be 1 to 63 of a-z, 0-9, '.', '_' and '-'"),
    ],
)
def test_refused_aliases(name: str, message: str) -> None:
    check_alias("prod")
    with pytest.raises(InvalidName) as caught:
        check_alias(name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Acme", "tenant 'Acme' has capital letters; use 'acme'"),
        ("base", "tenant 'base' is reserved"),
        ("a.b", "tenant 'a.b' must be 1 to 63 of a-z, 0-9, '-', and begin"),
        ("*", "tenant '*' must be"),
    ],
)
def test_refused_tenants(name: str, message: str) -> None:
    check_tenant("acme-2")
    with pytest.raises(InvalidName) as caught:
        check_tenant(name)
    assert message in str(caught.value)
