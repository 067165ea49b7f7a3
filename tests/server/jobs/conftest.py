"""The same tests on both databases."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters.registry.access import migrated
from tests.server.jobs.stand import Place
from tests.server.jobs.world import Site, sites


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


@pytest.fixture
def site(migrated_url: str, tmp_path: Path) -> Iterator[Site]:
    with sites(migrated_url, tmp_path, "here") as (site,):
        yield site


@pytest.fixture
def pair(migrated_url: str, tmp_path: Path) -> Iterator[tuple[Site, ...]]:
    with sites(migrated_url, tmp_path, "here", "there") as pair:
        yield pair


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(tmp_path, monkeypatch)
    yield made
    made.registry.close()
