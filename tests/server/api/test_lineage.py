"""Where a version comes from, as it is told and shown over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.errors import InvalidAdapter
from adapters.registry.records import DataFile, Lineage
from server.api.errors import APIError
from server.api.lineage import LINEAGE_BYTES, MAX_DATA, MAX_SCORES, parse_lineage
from tests.server.api.stand import Stand, error

DIGEST = "ab" * 32
WHOLE: dict[str, Any] = {
    "parent": "shop@1",
    "parent_digest": DIGEST,
    "job": "ft-17",
    "data": [{"name": "train.jsonl", "sha256": DIGEST}],
    "scores": {"accuracy": 0.5, "loss": 1},
}


def test_everything_that_may_be_said() -> None:
    assert parse_lineage(json.dumps(WHOLE).encode()) == Lineage(
        parent="shop@1",
        parent_digest=DIGEST,
        job="ft-17",
        data=(DataFile("train.jsonl", DIGEST),),
        scores=(("accuracy", 0.5), ("loss", 1.0)),
    )
    assert parse_lineage(b"{}") == Lineage()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"partner": "x"}, "lineage.partner"),
        ({"parent": 1}, "lineage.parent"),
        ({"parent": "x" * 257}, "lineage.parent"),
        ({"parent_digest": "x"}, "lineage.parent_digest"),
        ({"job": ""}, "lineage.job"),
        ({"data": [{"name": "a"}]}, "lineage.data[0].sha256"),
        ({"data": [{"name": "a", "sha256": "x"}]}, "lineage.data[0].sha256"),
        ({"data": [{"name": "a", "sha256": DIGEST, "url": "x"}]}, "lineage.data[0].url"),
        ({"data": [{"name": "a", "sha256": DIGEST}] * (MAX_DATA + 1)}, "lineage.data"),
        ({"scores": {"a": "0.5"}}, "lineage.scores.a"),
        ({"scores": {str(n): 1 for n in range(MAX_SCORES + 1)}}, "lineage.scores"),
    ],
)
def test_what_is_refused_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(APIError) as caught:
        parse_lineage(json.dumps(fields).encode())
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith("lineage: ")


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{", b'{"job": "a", "job": "b"}', b'{"scores": {"a": NaN}}', b"\xff", b"[" * 20_000],
)
def test_what_is_no_strict_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidAdapter, match="lineage"):
        parse_lineage(raw)


def test_a_chain_of_versions(stand: Stand) -> None:
    stand.upload("shop", 1, lineage=b'{"job": "ft-1"}')
    stand.upload("shop", 2, lineage=b'{"parent": "shop@1", "job": "ft-2"}')
    told = {**WHOLE, "parent": "shop@2", "parent_digest": stand.get("shop@2").json()["digest"]}
    stand.upload("child", 3, lineage=json.dumps(told).encode())

    assert stand.get("child").json()["lineage"] == told
    chain = stand.get("child/lineage").json()["data"]
    assert [(each["id"], each["lineage"]["job"]) for each in chain] == [
        ("child@1", "ft-17"),
        ("shop@2", "ft-2"),
        ("shop@1", "ft-1"),
    ]
    stand.delete("shop", force=True)
    assert [each["state"] for each in stand.get("child/lineage").json()["data"]] == [
        "ready",
        "deleted",
        "deleted",
    ]


def test_a_part_over_its_bound_is_a_413_and_a_bad_one_a_400(stand: Stand) -> None:
    assert stand.upload("shop", lineage=b" " * (LINEAGE_BYTES + 1)).status_code == 413
    assert error(stand.upload("shop", lineage=b"[]")) == (400, "invalid_adapter")
    assert error(stand.upload("shop", lineage=b'{"x": 1}')) == (400, "unknown_field")
    assert error(stand.get("nobody/lineage")) == (404, "adapter_not_found")


def test_parents_of_other_tenants_are_not_shown(stand: Stand) -> None:
    stand.upload("base-tune", 1)
    with stand.tenant("acme"):
        stand.upload("legal", 2, lineage=b'{"parent": "default/base-tune@1"}')
        assert [each["id"] for each in stand.get("legal/lineage").json()["data"]] == ["acme/legal@1"]
