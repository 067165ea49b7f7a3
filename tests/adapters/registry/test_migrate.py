"""Databases of earlier releases are taken over, those of later ones refused."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, select, text

from adapters.base import BaseSpec
from adapters.errors import AdapterConflict
from adapters.registry.database import Database, sqlite_url
from adapters.registry.registry import Registry
from adapters.registry.schema import METADATA, VERSIONS
from server.jobs.schema import METADATA as JOBS
from tests.adapters.conftest import LIMITS, AdapterFiles

OLD = """CREATE TABLE adapter_versions (
    name VARCHAR(63) NOT NULL, version INTEGER NOT NULL, digest VARCHAR(64) NOT NULL,
    base_digest VARCHAR(64) NOT NULL, created FLOAT NOT NULL, size BIGINT NOT NULL, rank INTEGER NOT NULL,
    parameters BIGINT NOT NULL, target_modules JSON NOT NULL, source TEXT NOT NULL, deleted FLOAT,
    {later} PRIMARY KEY (name, version))"""
LATER = (
    "task VARCHAR(63), labels JSON, invocation JSON, variant VARCHAR(32), unmixable TEXT, "
    "trained_on_quantization VARCHAR(16), proof_status VARCHAR(16), proof_reason TEXT, "
    "max_logit_difference FLOAT, kl_from_base FLOAT,"
)
COLUMNS = (
    "name, version, digest, base_digest, created, size, rank, parameters, target_modules, source, deleted"
)


def old_file(
    path: Path, digests: dict[tuple[str, int], str], deleted: set[tuple[str, int]], later: str
) -> None:
    """As a release before tenants wrote it, without Alembic."""
    with closing(sqlite3.connect(path)) as old:
        old.execute("PRAGMA journal_mode=WAL")
        old.execute(OLD.format(later=later))
        for (name, version), digest in digests.items():
            row = (name, version, digest, "b" * 64, 12.5, 100, 4, 1000, '["q_proj", "v_proj"]', "upload")
            gone = 13.5 if (name, version) in deleted else None
            old.execute(
                f"INSERT INTO adapter_versions ({COLUMNS}) VALUES ({', '.join('?' * 11)})", (*row, gone)
            )
        if later:
            old.execute(
                "UPDATE adapter_versions SET task = 'SEQ_CLS', labels = '[\"bad\", \"good\"]', "
                "variant = 'dora', proof_status = 'proved', kl_from_base = 0.25 WHERE name = 'mood'"
            )
        old.commit()


@pytest.mark.parametrize("later", ["", LATER])
def test_a_file_of_an_older_release(tmp_path: Path, base: BaseSpec, files: AdapterFiles, later: str) -> None:
    with Registry(tmp_path / "new", base, LIMITS) as registry:
        digest = registry.publish("x", files.config, files.weights)[0].digest
    (tmp_path / "data").mkdir()
    (tmp_path / "new" / "adapters").rename(tmp_path / "data" / "adapters")
    digests = {("tone", number): "a" * 64 for number in (1, 2, 4)} | {
        ("tone", 2): digest,
        ("mood", 1): digest,
    }
    path = tmp_path / "data" / "registry.sqlite3"
    old_file(path, digests, {("tone", 4), ("tone", 1)}, later)
    with Registry(tmp_path / "data", base, LIMITS) as registry:
        mood, tone = registry.list()
        assert registry.resolve("tone") == tone
        assert (tone.ref, tone.created, tone.state, tone.variant) == ("tone@2", 12.5, "ready", "lora")
        assert registry.find("tone@4").state == "deleted"
        assert registry.load(tone.digest).digest == digest
        assert registry.aliases("tone")[0].targets[0].version == 2
        if later:
            assert (mood.variant, mood.task, mood.labels) == ("dora", "SEQ_CLS", ("bad", "good"))
            assert (mood.proof.status, mood.proof.kl_from_base) == ("proved", 0.25)
        else:
            assert (mood.variant, mood.labels, mood.proof.status) == ("lora", (), "off")
        assert registry.publish("tone", files.set(lora_alpha=2), files.weights)[0].ref == "tone@5"
        assert registry.resolve("tone").version == 5
    with closing(sqlite3.connect(path)) as newer, pytest.raises(sqlite3.OperationalError):
        newer.execute("ALTER TABLE adapter_versions ADD COLUMN task VARCHAR(63)")  # as an old release would


def test_migrations_make_what_the_code_has(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, [METADATA, JOBS])  # type: ignore[arg-type]
    assert differences == []


def test_a_newer_database_is_refused(database_url: str | None, tmp_path: Path) -> None:
    url = database_url or sqlite_url(tmp_path / "registry.sqlite3")
    database = Database(url)
    with database.write() as write:
        write.connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(AdapterConflict, match=r"a newer release wrote the registry's database .*9999"):
        Database(url)
    database.close()


def test_replicas_that_start_together(postgres_url: str) -> None:
    started: list[Database] = []
    threads = [Thread(target=lambda: started.append(Database(postgres_url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({database.identity for database in started}) == 1
    assert len(started) == 4
    for database in started:
        database.close()


def test_rows_of_an_old_table_on_postgres(postgres_url: str) -> None:
    engine = create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(text(OLD.format(later="")))
        values = "'tone', 3, 'a', 'b', 12.5, 100, 4, 1000, '[\"q_proj\"]', 'upload', NULL"
        connection.execute(text(f"INSERT INTO adapter_versions ({COLUMNS}) VALUES ({values})"))
    engine.dispose()
    database = Database(postgres_url)
    with database.read() as connection:
        row = connection.execute(select(VERSIONS)).mappings().one()
    assert (row["tenant"], row["name"], row["version"], row["state"]) == ("default", "tone", 3, "ready")
    assert row["target_modules"] == ["q_proj"]
    database.close()


def test_a_migration_that_is_cut_off_has_done_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "registry.sqlite3"
    old_file(path, {("tone", 1): "a" * 64}, set(), LATER)
    with monkeypatch.context() as patched:
        patched.setattr("uuid.uuid4", lambda: 1 / 0)  # the first that it does after making the tables
        with pytest.raises(ZeroDivisionError):
            Database(sqlite_url(path))
    with closing(sqlite3.connect(path)) as same:
        assert same.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [
            ("adapter_versions",)
        ]
        assert same.execute("SELECT name, version FROM adapter_versions").fetchall() == [("tone", 1)]
    Database(sqlite_url(path)).close()
