"""Rows survive, and numbers are never given twice."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from adapters.registry.catalog import AdapterVersion, Catalog


def version(name: str, number: int) -> AdapterVersion:
    return AdapterVersion(
        name, number, "a" * 64, "b" * 64, 12.5, 2**40, 8, 2**33, ("k_proj", "q_proj"), "test"
    )


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "catalog with a ? in its name"
    first = Catalog(path)
    versions = [version("a", 1), version("a", 2), version("b", 1)]
    for each in reversed(versions):
        first.add(each)
    first.close()
    second = Catalog(path)
    assert second.live() == versions
    assert versions[1].ref == "a@2"
    second.close()


def test_deleted_rows_keep_their_number(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "catalog")
    assert catalog.next_version("a") == 1
    for number in (1, 2):
        catalog.add(version("a", number))
    catalog.delete([version("a", 1), version("a", 2)])
    assert catalog.live() == []
    assert catalog.next_version("a") == 3
    assert catalog.next_version("b") == 1
    with pytest.raises(IntegrityError):
        catalog.add(version("a", 2))
    catalog.close()


def test_a_file_of_an_older_release_gets_the_columns_that_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "catalog"
    catalog = Catalog(path)
    catalog.add(version("a", 1))
    catalog.close()
    with closing(sqlite3.connect(path)) as old:
        proof = ("proof_status", "proof_reason", "max_logit_difference", "kl_from_base")
        for column in (*proof, "task", "labels", "invocation", "variant"):
            old.execute(f"ALTER TABLE adapter_versions DROP COLUMN {column}")
        old.commit()
    newer = replace(
        version("a", 2), task="SEQ_CLS", labels=("good", "bad"), invocation=(7, 8), variant="dora"
    )
    catalog = Catalog(path)
    catalog.add(newer)
    assert catalog.live() == [version("a", 1), newer]
    catalog.close()
