"""Databases that have their tables, of both kinds: a copy of a file, and one of a real PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters.registry.access import migrated


@pytest.fixture(scope="module")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "registry.sqlite3"
    migrated(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgres"])
def migrated_url(request: pytest.FixtureRequest, migrated_file: Path, tmp_path: Path) -> Iterator[str]:
    """Of a database that has its tables."""
    if request.param == "sqlite":
        shutil.copy(migrated_file, tmp_path)
        yield f"sqlite:///{tmp_path / migrated_file.name}"
    else:
        with request.getfixturevalue("postgres").database(migrated) as url:
            yield url
