"""Records come back from both databases as they were."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from sqlalchemy import insert

from adapters.errors import TenantNotFound
from adapters.registry.database import Database, Write
from adapters.registry.proof import Proof
from adapters.registry.records import LOCAL, AdapterVersion, DataFile, Lineage
from adapters.registry.rows import find_version, put_version, quota_of, versions_of
from adapters.registry.schema import ADAPTERS

BASE = "b" * 64
LINEAGE = Lineage("tone@1", "e" * 64, "ft-17", (DataFile("train.jsonl", "f" * 64),), (("accuracy", 0.93),))
FULL = AdapterVersion(
    name="tone",
    version=3,
    digest="d" * 64,
    base_digest=BASE,
    created=1.5,
    size=2**40,
    rank=4,
    parameters=2**33,
    target_modules=("k_proj", "q_proj"),
    source="ünïcode 'quoted'",
    task="SEQ_CLS",
    labels=("no", "yes"),
    invocation=(1, 2, 3),
    variant="dora",
    trained_on_quantization="nf4",
    unmixable="it has a head",
    proof=Proof("proved", "why", 1e-7, 0.25),
    tenant="acme",
    state="deprecated",
    reason="old",
    desired="pinned",
    lineage=LINEAGE,
    replica="r",
)


def insert_all(write: Write, *versions: AdapterVersion) -> None:
    for tenant, name in sorted({(version.tenant, version.name) for version in versions}):
        row = {"tenant": tenant, "name": name, "next_version": 9}
        write.connection.execute(insert(ADAPTERS).values(row))
    for version in versions:
        put_version(write, version, is_new=True)


def test_every_field_comes_back(database: Database) -> None:
    plain = AdapterVersion("tone", 2, "c" * 64, BASE, 1.0, 1, 1, 1, (), tenant="acme")
    unset = [each.name for each in fields(FULL) if getattr(FULL, each.name) == getattr(plain, each.name)]
    assert unset == ["name", "base_digest", "tenant"], "set each field to something of its own"
    with database.write() as write:
        insert_all(write, FULL, plain)
    with database.read() as connection:
        assert find_version(connection, ("acme", "tone"), 3) == FULL
        assert versions_of(connection, ("acme", "tone"), BASE) == [plain, FULL]


def test_a_change_is_of_one_row(database: Database) -> None:
    others = [replace(FULL, version=2), replace(FULL, tenant="rival"), replace(FULL, name="voice")]
    changed = replace(FULL, state="deleted", lineage=Lineage(), proof=Proof("off"))
    with database.write() as write:
        insert_all(write, FULL, *others)
        put_version(write, changed, is_new=False)
    with database.read() as connection:
        assert find_version(connection, ("acme", "tone"), 3) == changed
        assert [find_version(connection, (v.tenant, v.name), v.version) for v in others] == others
        assert versions_of(connection, ("acme", "tone"), BASE) == others[:1]
        assert versions_of(connection, ("acme", "tone"), BASE, ["deleted"]) == [changed]
        assert versions_of(connection, ("acme", "tone"), "c" * 64) == []
        assert find_version(connection, ("acme", "tone"), 4) is None


def test_a_tenant_that_is_not_there_has_no_quota(database: Database) -> None:
    with database.read() as connection:
        assert quota_of(connection, LOCAL.tenant).max_versions is None
        with pytest.raises(TenantNotFound, match="no tenant 'acme'"):
            quota_of(connection, "acme")
