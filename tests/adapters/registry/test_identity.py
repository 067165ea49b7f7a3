"""A data directory belongs to one process, and to one database."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.base import BaseSpec
from adapters.errors import AdapterConflict
from adapters.registry.identity import SQLITE_FILE, DataDir
from adapters.registry.registry import Registry
from tests.adapters.conftest import LIMITS, AdapterFiles


def test_one_at_a_time_and_the_same_replica_again(tmp_path: Path) -> None:
    first = DataDir(tmp_path / "data")
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    with pytest.raises(AdapterConflict, match="in use by another server"):
        DataDir(tmp_path / "data")
    first.bind("d" * 32, is_inside=True)
    first.close()
    again = DataDir(tmp_path / "data")
    assert again.replica == first.replica
    again.bind("d" * 32, is_inside=True)
    with pytest.raises(AdapterConflict, match="holds the adapters of another database"):
        again.bind("e" * 32, is_inside=False)
    again.close()
    other = DataDir(tmp_path / "other")
    assert other.replica != first.replica
    (tmp_path / "other" / SQLITE_FILE).touch()  # of a release that did not note it
    with pytest.raises(AdapterConflict, match="holds the adapters of another database"):
        other.bind("e" * 32, is_inside=False)
    other.close()


def test_files_are_not_garbage_because_the_database_is_another(
    tmp_path: Path, base: BaseSpec, files: AdapterFiles, postgres_url: str
) -> None:
    with Registry(tmp_path / "data", base, LIMITS) as registry:
        digest = registry.publish("tone", files.config, files.weights)[0].digest
    with pytest.raises(AdapterConflict, match="give the --database-url that it was used with"):
        Registry(tmp_path / "data", base, LIMITS, database_url=postgres_url)
    (tmp_path / "data" / SQLITE_FILE).unlink()
    with pytest.raises(AdapterConflict, match="holds the adapters of another database"):
        Registry(tmp_path / "data", base, LIMITS)
    assert (tmp_path / "data" / "adapters" / digest).is_dir()
