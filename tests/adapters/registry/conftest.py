"""The same tests on both databases; adapters that differ in one number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from adapters.base import BaseSpec
from adapters.registry.database import Database, sqlite_url
from adapters.registry.registry import Registry
from tests.adapters.conftest import LIMITS, AdapterFiles


def _migrated(url: str) -> None:
    Database(url).close()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | None]:
    """Of an empty registry's database; None: SQLite in the data directory."""
    if request.param == "sqlite":
        yield None
        return
    with request.getfixturevalue("postgres").database(_migrated) as url:
        yield url


@pytest.fixture
def database(database_url: str | None, tmp_path: Path) -> Iterator[Database]:
    database = Database(database_url or sqlite_url(tmp_path / "registry.sqlite3"))
    yield database
    database.close()


class Shop:
    """Registries on one database, and adapters to publish in them."""

    def __init__(self, folder: Path, url: str | None, base: BaseSpec, files: AdapterFiles) -> None:
        self.folder, self.url, self.base, self.files = folder, url, base, files
        self._opened = ExitStack()

    def open(self, data: str = "data", base: BaseSpec | None = None, **options: object) -> Registry:
        """A registry on `data`; on Postgres, those of several folders are replicas."""
        registry = Registry(
            self.folder / data,
            base or self.base,
            LIMITS,
            database_url=self.url,
            **options,  # type: ignore[arg-type]
        )
        self._opened.callback(registry.close)
        return registry

    def publish(self, registry: Registry, name: str, alpha: float = 1, **options: object) -> str:
        """Publish content that `alpha` tells from others; the ref."""
        config = json.dumps(json.loads(self.files.config) | {"lora_alpha": alpha}).encode()
        return registry.publish(name, config, self.files.weights, **options)[0].ref  # type: ignore[arg-type]

    def close(self) -> None:
        self._opened.close()


@pytest.fixture
def shop(tmp_path: Path, database_url: str | None, base: BaseSpec, files: AdapterFiles) -> Iterator[Shop]:
    shop = Shop(tmp_path, database_url, base, files)
    yield shop
    shop.close()


@pytest.fixture
def registry(shop: Shop) -> Registry:
    return shop.open()
