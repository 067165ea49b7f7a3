"""What a publisher may say of the base that an adapter was trained on, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters.base import BaseSpec
from adapters.errors import InvalidAdapter
from adapters.registry.lineage import (
    LINEAGE_FILE,
    MAX_LINEAGE_BYTES,
    check_quantization,
    lineage_object,
    parse_lineage,
    quantization_beside,
    quantization_warning,
)


@pytest.mark.parametrize("value", ["none", "nf4", "fp4", "int8"])
def test_the_words_that_are_known(value: str) -> None:
    assert check_quantization(value) == value


@pytest.mark.parametrize("value", ["", "NF4", "gptq", 4, None, ["nf4"]])
def test_others_are_refused_with_those_that_are(value: object) -> None:
    with pytest.raises(InvalidAdapter, match=r"quantization: .* is not one of none, nf4, fp4, int8"):
        check_quantization(value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [({"quantization": "int8"}, "int8"), ({"quantization": None}, None), ({"data": "x"}, None), (None, None)],
)
def test_a_folder_may_say_it(tmp_path: Path, content: object, expected: str | None) -> None:
    if content is not None:
        (tmp_path / LINEAGE_FILE).write_text(json.dumps(content))
    assert quantization_beside(tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "lineage.json must be a JSON object"),
        ("{", "lineage.json"),
        ('{"quantization": "awq"}', "'awq' is not one of"),
        (" " * (MAX_LINEAGE_BYTES + 1), "larger than"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / LINEAGE_FILE).write_text(text)
    with pytest.raises(InvalidAdapter, match=message):
        quantization_beside(tmp_path)


@pytest.mark.parametrize(
    ("served", "trained_on", "warns"),
    [
        (None, None, False),
        (None, "none", False),
        (None, "nf4", True),
        ("nf4", None, False),
        ("nf4", "nf4", False),
        ("nf4", "none", True),
        ("nf4", "int8", True),
    ],
)
def test_a_warning_where_the_two_differ(served: str | None, trained_on: str | None, warns: bool) -> None:
    base = BaseSpec("base", "d" * 64, {}, quantization=served)
    warning = quantization_warning(base, trained_on)
    assert (warning is not None) == warns
    if warning is not None:
        assert f"with quantization {trained_on}, " in warning
        assert f"with quantization {served or 'none'}:" in warning


FULL = {
    "parent": "tone@3",
    "parent_digest": "a" * 64,
    "job": "ft-17",
    "data": [{"name": "train.jsonl", "sha256": "b" * 64}],
    "scores": {"accuracy": 0.93, "steps": 4.0},
}


def test_lineage_comes_back_as_it_was() -> None:
    lineage = parse_lineage(FULL | {"code": ["whatever", "else"], "quantization": "nf4"})
    assert lineage_object(lineage) == FULL
    assert parse_lineage(lineage_object(lineage)) == lineage
    assert lineage_object(parse_lineage({})) == {}
    assert parse_lineage({"data": None, "scores": None, "parent": None}) == parse_lineage({})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parent": 3}, "lineage: parent must be a text of at most 1000 characters"),
        ({"job": "x" * 1001}, "lineage: job must be a text of at most 1000 characters"),
        ({"parent_digest": "9f86"}, "lineage: parent_digest '9f86' is not 64 hex digits"),
        ({"data": {}}, None),
        ({"data": {"a": 1}}, "lineage: data must be a list of at most 1000 files"),
        ({"data": [1] * 1001}, "lineage: data must be a list of at most 1000 files"),
        ({"data": ["train"]}, "lineage: data must be a list of objects with a name and a sha256"),
        ({"data": [{"name": "x"}]}, "lineage: sha256 'None' of a data file is not 64 hex digits"),
        ({"data": [{"sha256": "a" * 64}]}, "lineage: a data file's name must be a text"),
        ({"scores": [1]}, "lineage: scores must be an object of at most 1000 numbers"),
        ({"scores": {"loss": True}}, "lineage: score 'loss' must be a finite number"),
        ({"scores": {"loss": float("nan")}}, "lineage: score 'loss' must be a finite number"),
        ({"scores": {"loss": 10**400}}, "lineage: score 'loss' must be a finite number"),
        ({"scores": {"l" * 1001: 1}}, "lineage: a score's name must be a text"),
    ],
)
def test_lineage_that_is_none(fields: dict[str, object], message: str | None) -> None:
    if message is None:
        assert parse_lineage(fields) == parse_lineage({})
        return
    with pytest.raises(InvalidAdapter) as caught:
        parse_lineage(fields)
    assert message in str(caught.value)
