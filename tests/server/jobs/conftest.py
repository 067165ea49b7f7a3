"""The same tests on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.jobs.stand import Place
from tests.server.jobs.world import Site, sites


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
