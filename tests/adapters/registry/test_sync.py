"""Replicas on one database see each other's changes within a second, and go on while it is away."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.base import BaseSpec
from adapters.blobs.blobs import open_blobs
from adapters.errors import AdapterConflict, AdapterNotFound, RegistryUnavailable
from adapters.registry.database import Database
from adapters.registry.records import Target
from adapters.registry.registry import Registry
from tests.adapters.conftest import AdapterFiles
from tests.adapters.registry.conftest import Shop
from tests.adapters.registry.racer import race
from tests.postgres import Cluster

SECONDS = 1.0


@pytest.fixture
def replicas(tmp_path: Path, postgres_url: str, base: BaseSpec, files: AdapterFiles) -> Shop:
    return Shop(tmp_path, postgres_url, base, files)


def open_two(shop: Shop) -> tuple[Registry, Registry]:
    """With a store that they share."""
    store = f"file://{shop.folder / 'store'}"
    first = shop.open("one", blobs=open_blobs(shop.folder / "one", store, None))
    return first, shop.open("two", blobs=open_blobs(shop.folder / "two", store, None))


def soon(look: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not look():
        assert time.monotonic() < end, "not seen within a second"
        time.sleep(0.01)


def found(registry: Registry, ref: str) -> int:
    try:
        return registry.resolve(ref).version
    except AdapterNotFound:
        return 0


def test_replicas_see_each_other(replicas: Shop) -> None:
    first, second = open_two(replicas)
    changes: list[float] = []
    second.on_change = lambda: changes.append(time.monotonic())
    replicas.publish(first, "tone", 1)
    soon(lambda: found(second, "tone") == 1)
    soon(lambda: bool(changes))
    digest = second.resolve("tone").digest
    second.hold(digest)
    assert second.load(digest).digest == digest  # from the store
    assert replicas.publish(second, "tone", 2) == "tone@2"
    soon(lambda: found(first, "tone") == 2)
    second.set_alias("tone", "prod", [Target(1, 50), Target(2, 50)])
    soon(lambda: bool(first.aliases("tone")[1:]))
    assert {first.route("tone@prod", key=str(n)).version for n in range(40)} == set(second.versions("tone"))
    assert all(
        first.route("tone@prod", key=str(n)).version == second.route("tone@prod", key=str(n)).version
        for n in range(40)
    )
    first.want("tone@1", "pinned")
    soon(lambda: [version.ref for version in second.wanted()] == ["tone@1"])
    first.share("tone", "acme")
    soon(lambda: second.shares("tone") == ("acme",))
    first.tenants.put("acme")
    soon(lambda: "acme" in {tenant.name for tenant in second.tenants.list()})
    first.delete("tone", force=True)
    soon(lambda: second.list() == ())
    assert second.folder(digest).is_dir()  # as long as it is held
    second.release(digest)
    soon(lambda: second._blobs.digests() == [])
    replicas.close()


def test_one_replica_loses_a_race_for_an_alias(replicas: Shop) -> None:
    first, second = open_two(replicas)
    replicas.publish(first, "tone", 1)
    replicas.publish(first, "tone", 2)
    first.set_alias("tone", "prod", [Target(1)])
    second.promote("tone@2", "prod", expected=1)  # though it may not have seen the alias yet
    with pytest.raises(AdapterConflict, match="at revision 2, not 1"):
        first.promote("tone@1", "prod", expected=1)
    with pytest.raises(AdapterConflict, match="'tone@prod' means it"):
        first.delete("tone@2")
    replicas.close()


def test_races_of_two_processes(replicas: Shop) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.adapters.registry.racer"])
    running = []
    for number in range(2):
        ours, theirs = processes.Pipe()
        arguments = (replicas.folder, replicas.url, replicas.base, replicas.files.folder, number, theirs)
        process = processes.Process(target=race, args=arguments)
        process.start()
        running.append((process, ours))
    for _, pipe in running:
        assert pipe.recv() == "ready"
    for _, pipe in running:
        pipe.send("go")
    results = [pipe.recv() for _, pipe in running]
    for process, _ in running:
        process.join()
    numbers = [number for given, _ in results for number in given]
    won = [revision for _, revisions in results for revision in revisions]
    assert sorted(numbers) == list(range(1, 9))  # each number once
    assert len(set(won)) == len(won)  # each revision has one winner
    with replicas.open("looks") as registry:
        history = registry.alias_history("tone", "prod")
        assert [alias.revision for alias in history] == list(range(len(won), 0, -1))
        assert registry.resolve("tone").version == 8


def test_answers_go_on_while_the_database_is_away(
    replicas: Shop, postgres: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    registry = replicas.open("one")
    replicas.publish(registry, "tone", 1)
    name = str(replicas.url).split("@/")[1].split("?")[0]
    with caplog.at_level(logging.WARNING):
        postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        ends = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        postgres.execute(ends)
        soon(lambda: "answers go on from what is in memory" in caplog.text)
        assert registry.resolve("tone").version == 1
        digest = registry.resolve("tone").digest
        registry.hold(digest)
        assert registry.load(digest).digest == digest
        registry.release(digest)
        with pytest.raises(RegistryUnavailable, match="does not answer"):
            registry.promote("tone@1", "prod")
        with pytest.raises(RegistryUnavailable):
            replicas.publish(registry, "tone", 2)
        time.sleep(0.6)
        assert caplog.text.count("answers go on from what is in memory") == 1
        postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        soon(lambda: "the registry's database is back" in caplog.text)
    assert replicas.publish(registry, "tone", 2) == "tone@2"
    other = Database(str(replicas.url))
    other.close()
    replicas.close()
