"""The database of the tests is a real one, fresh for each test, and leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest

from tests import postgres as module
from tests.postgres import REQUIRED, Cluster, programs_or_skip, running

SEEN: list[str] = []


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_a_fresh_database(postgres_url: str, turn: int) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE mine (id int)")
    for earlier in SEEN:
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            psycopg.connect(earlier)
    SEEN.append(postgres_url)


def test_a_copy_is_filled_once_and_changed_alone(postgres: Cluster) -> None:
    calls: list[str] = []

    def fill(url: str) -> None:
        calls.append(url)
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE numbers AS SELECT 7 AS number")

    for _ in range(2):
        with postgres.database(fill) as url, psycopg.connect(url) as connection:
            assert connection.execute("DELETE FROM numbers RETURNING number").fetchall() == [(7,)]
    assert len(calls) == 1


def test_a_stopped_cluster_leaves_no_process_and_no_folder(postgres: Cluster) -> None:
    with running(programs_or_skip()) as cluster:
        process = int((cluster.folder / "data" / "postmaster.pid").read_text().split()[0])
        assert cluster.folder != postgres.folder
        assert (Path("/proc") / str(process)).exists()
    assert not cluster.folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.parametrize(("value", "outcome"), [("", "skipped"), ("1", "failed")])
def test_without_postgres_tests_skip_unless_it_is_required(
    monkeypatch: pytest.MonkeyPatch, value: str, outcome: str
) -> None:
    monkeypatch.setattr(module, "binaries", lambda: None)
    monkeypatch.setenv(REQUIRED, value)
    expected = {"skipped": pytest.skip.Exception, "failed": pytest.fail.Exception}[outcome]
    with pytest.raises(expected, match="PostgreSQL is not installed"):
        programs_or_skip()
