"""What is visible to whom, what a reference means, and who needs which files; without a database."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import insert

from adapters.errors import AdapterForbidden, AdapterNotFound, InvalidName
from adapters.registry.database import Database, sqlite_url
from adapters.registry.records import LOCAL, AdapterVersion, Alias, Caller, Target
from adapters.registry.rows import put_version
from adapters.registry.schema import ADAPTERS, ALIASES, SHARES
from adapters.registry.snapshot import Snapshot, choose

ONE = AdapterVersion("one", 1, "a" * 64, "b" * 64, 0.0, 1, 1, 1, ("q",))
TWO = replace(ONE, version=2, digest="c" * 64)
THREE = replace(ONE, version=3, state="uploaded", digest="")
ELSEWHERE = replace(ONE, name="other", digest="d" * 64, base_digest="e" * 64)
THEIRS = replace(ONE, tenant="acme", name="legal", digest="f" * 64)
ACME, RIVAL = Caller("acme", "key-1"), Caller("rival", "key-2")


class Feed:
    """Writes rows, and has a snapshot read them."""

    def __init__(self, database: Database) -> None:
        self.database, self.snapshot, self._seen = database, Snapshot(ONE.base_digest), 0

    def versions(self, *versions: AdapterVersion, is_new: bool = True) -> None:
        with self.database.write() as write:
            names = {(version.tenant, version.name) for version in versions if is_new}
            if names:
                rows = [{"tenant": tenant, "name": name, "next_version": 9} for tenant, name in names]
                write.connection.execute(insert(ADAPTERS), rows)
            for version in versions:
                put_version(write, version, is_new)
        self.follow()

    def alias(
        self, adapter: AdapterVersion, alias: str, *targets: tuple[int, int], shadow: int | None = None
    ) -> None:
        with self.database.write() as write:
            row: dict[str, object] = {
                "base_digest": adapter.base_digest,
                "tenant": adapter.tenant,
                "name": adapter.name,
            }
            row |= {"alias": alias, "targets": [list(target) for target in targets], "shadow": shadow}
            row |= {"edition": 1, "updated": 0.0, "actor": "", "revision": write.revision}
            write.connection.execute(insert(ALIASES).values(row))
        self.follow()

    def share(self, adapter: AdapterVersion, other: str) -> None:
        with self.database.write() as write:
            row = {"tenant": adapter.tenant, "name": adapter.name, "other": other, "created": 0.0}
            write.connection.execute(insert(SHARES).values(row | {"revision": write.revision}))
        self.follow()

    def follow(self) -> None:
        with self.database.read() as connection:
            self.snapshot.follow(connection, self._seen)
        self._seen = self.database.revision()


@pytest.fixture
def feed(tmp_path: Path) -> Feed:
    return Feed(Database(sqlite_url(tmp_path / "registry.sqlite3")))


def test_only_versions_of_this_base_that_answer_are_listed(feed: Feed) -> None:
    feed.versions(ONE, TWO, THREE, ELSEWHERE)
    snapshot = feed.snapshot
    assert snapshot.all(LOCAL) == snapshot.versions(("default", "one")) == (ONE, TWO)
    assert snapshot.versions(("default", "other")) == ()
    assert not snapshot.is_unused(ELSEWHERE.digest)
    assert snapshot.needed() == {ONE.digest, TWO.digest, ELSEWHERE.digest}
    feed.versions(replace(TWO, state="deleted"), is_new=False)
    assert snapshot.all(LOCAL) == (ONE,)
    assert snapshot.take_loose() == {TWO.digest}
    assert snapshot.is_unused(TWO.digest)
    feed.versions(replace(ONE, state="deprecated", reason="old"), is_new=False)
    assert [version.reason for version in snapshot.all(LOCAL)] == ["old"]
    feed.versions(replace(ONE, state="deleted"), replace(THREE, state="refused"), is_new=False)
    assert snapshot.all(LOCAL) == ()


def test_what_references_mean(feed: Feed) -> None:
    feed.versions(ONE, TWO, THREE)
    feed.alias(ONE, "default", (1, 100), shadow=2)
    feed.alias(ONE, "prod", (2, 100), shadow=3)
    route = feed.snapshot.route("one", LOCAL, None)
    assert (route.version, route.alias, route.shadow) == (ONE, "default", TWO)
    route = feed.snapshot.route("one@prod", LOCAL, None)
    assert (route.version, route.alias, route.shadow) == (TWO, "prod", None)  # 3 does not answer
    route = feed.snapshot.route("one@2", LOCAL, None)
    assert (route.version, route.alias, route.shadow) == (TWO, "", None)
    for ref in ("one@3", "one@4", "one@nobody", "two", "acme/one", "One", "one@", ""):
        with pytest.raises(AdapterNotFound, match="GET /v1/models"):
            feed.snapshot.route(ref, LOCAL, None)


def test_others_see_what_is_shared_with_them_and_nothing_else(feed: Feed) -> None:
    feed.versions(ONE, THEIRS)
    feed.alias(ONE, "default", (1, 100))
    feed.alias(THEIRS, "default", (1, 100))
    snapshot = feed.snapshot
    assert snapshot.route("legal", ACME, None).version == THEIRS
    assert snapshot.route("acme/legal", ACME, None).version == THEIRS
    assert snapshot.route("acme/legal@1", LOCAL, None).version.ref == "acme/legal@1"
    assert snapshot.all(LOCAL) == (THEIRS, ONE)
    assert snapshot.all(ACME) == (THEIRS,)
    hidden = [(RIVAL, "acme/legal"), (RIVAL, "legal"), (LOCAL, "legal"), (ACME, "one"), (ACME, "default/one")]
    for caller, ref in hidden:
        with pytest.raises(AdapterNotFound):
            snapshot.route(ref, caller, None)
        with pytest.raises(AdapterNotFound):
            snapshot.adapter(ref, caller)
    with pytest.raises(AdapterNotFound):
        snapshot.owned("acme/legal", RIVAL)
    feed.share(THEIRS, "rival")
    assert snapshot.route("acme/legal", RIVAL, None).version == THEIRS
    assert snapshot.all(RIVAL) == (THEIRS,)
    with pytest.raises(AdapterForbidden, match="acme/legal is shared with you"):
        snapshot.owned("acme/legal", RIVAL)
    feed.share(ONE, "*")
    assert snapshot.route("default/one", RIVAL, None).version == ONE
    with pytest.raises(AdapterNotFound):
        snapshot.route("one", RIVAL, None)
    with pytest.raises(InvalidName, match="without '@'"):
        snapshot.adapter("acme/legal@1", ACME)


def alias(*targets: tuple[int, int], name: str = "one") -> Alias:
    return Alias("default", name, "default", tuple(Target(*target) for target in targets), None, 1, 0.0, "")


KEYS = [f"user-{number}" for number in range(4000)]


def test_a_key_always_means_the_same_and_shares_are_kept() -> None:
    canary = alias((1, 70), (2, 20), (3, 10))
    chosen = {key: choose(canary, key) for key in KEYS}
    assert chosen == {key: choose(canary, key) for key in KEYS}
    count = Counter(chosen.values())
    for version, percent in ((1, 70), (2, 20), (3, 10)):
        assert abs(count[version] / len(KEYS) - percent / 100) < 0.03
    other = {key: choose(alias((1, 70), (2, 20), (3, 10), name="two"), key) for key in KEYS}
    assert other != chosen  # who is first with one adapter is not first with all
    assert choose(canary, "\udc80") in (1, 2, 3)


def test_a_rising_canary_only_gains_keys_and_none_change_between_the_others() -> None:
    before = {key: choose(alias((1, 60), (2, 40)), key) for key in KEYS}
    for percent in (5, 20, 50, 95):
        rest = 100 - percent
        now = {key: choose(alias((1, rest * 6), (2, rest * 4), (9, percent * 10)), key) for key in KEYS}
        assert all(now[key] in (9, before[key]) for key in KEYS)
        before = now


def test_without_a_key_it_is_chance() -> None:
    count = Counter(choose(alias((1, 75), (2, 25)), None) for _ in range(4000))
    assert abs(count[2] / 4000 - 0.25) < 0.05


def test_held_files_are_in_use_until_the_last_release(feed: Feed) -> None:
    snapshot = feed.snapshot
    feed.versions(ONE)
    snapshot.hold(ONE.digest)
    feed.versions(replace(ONE, state="deleted"), is_new=False)
    snapshot.hold(ONE.digest)
    assert snapshot.holders(ONE.digest) == 2
    assert not snapshot.release(ONE.digest)
    assert not snapshot.is_unused(ONE.digest)
    assert snapshot.release(ONE.digest)
    assert snapshot.is_unused(ONE.digest)
    with pytest.raises(AdapterNotFound):
        snapshot.hold(ONE.digest)
    snapshot.keep(ONE.digest)
    assert not snapshot.is_unused(ONE.digest)
