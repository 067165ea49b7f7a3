"""Blobs as the registry uses them: alone, and as a cache of what several servers share."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters.blobs.blobs import Blobs, open_blobs
from adapters.blobs.local import WEIGHTS_FILE
from adapters.blobs.manifest import MANIFEST_FILE
from adapters.blobs.remote import RemoteStore
from adapters.blobs.shared import SharedFolder
from adapters.errors import AdapterError, AdapterNotFound, InvalidAdapter, RegistryUnavailable
from tests import s3
from tests.adapters.blobs.stand import Files, adapter, commit, contents, remote


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return adapter(tmp_path / "source")


class Servers:
    """Two servers with data directories of their own and a folder that they share."""

    def __init__(self, root: Path) -> None:
        self.root, self.shared = root, root / "shared"

    def start(self, name: str, cache_bytes: int | None = None) -> Blobs:
        return Blobs(self.root / name, RemoteStore(SharedFolder(self.shared)), cache_bytes)

    def stored(self, ending: str) -> Path:
        """The only stored file whose name ends so."""
        (found,) = [path for path in self.shared.rglob("*") if path.name.endswith(ending)]
        return found


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    return Servers(tmp_path)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_alone(files: Files, tmp_path: Path) -> None:
    blobs = open_blobs(tmp_path / "data", None, None)
    with pytest.raises(AdapterNotFound, match=files.digest[:12]):
        blobs.fetch(files.digest)
    assert not blobs.has(files.digest)
    commit(blobs, files)
    assert contents(blobs.fetch(files.digest)) == files.contents
    assert blobs.has(files.digest)
    assert blobs.digests() == blobs.settled() == [files.digest]
    assert blobs.upload_missing([files.digest]) == []
    blobs.remove(files.digest)
    assert blobs.digests() == []
    blobs.close()


def test_a_published_adapter_is_everywhere(files: Files, servers: Servers) -> None:
    one, other = servers.start("one"), servers.start("other")
    commit(one, files)
    assert (one.digests(), other.digests()) == ([files.digest], [])
    assert other.has(files.digest)
    folder = other.fetch(files.digest)
    assert folder == other.folder(files.digest)
    assert contents(folder) == files.contents
    assert other.settled() == []
    assert other.settled(0) == [files.digest]
    other.forget(files.digest)
    assert other.has(files.digest)
    one.remove(files.digest)
    assert not other.has(files.digest)
    with pytest.raises(AdapterNotFound):
        other.fetch(files.digest)


def test_a_store_that_takes_nothing_leaves_nothing(
    files: Files, tmp_path: Path, bucket: s3.S3Bucket, front: s3.Proxy
) -> None:
    blobs = Blobs(tmp_path / "data", remote(bucket.url))
    front.misbehave = s3.failing(1000, 503)
    with pytest.raises(RegistryUnavailable):
        commit(blobs, files)
    assert blobs.digests() == []
    assert list((tmp_path / "data" / "adapters").iterdir()) == []
    front.misbehave = lambda request: None
    commit(blobs, files)
    front.misbehave = s3.failing(1000, 503)
    assert contents(blobs.fetch(files.digest)) == files.contents  # what is here is served on
    blobs.close()


def test_damage_from_afar_never_arrives(files: Files, servers: Servers) -> None:
    one, other = servers.start("one"), servers.start("other")
    commit(one, files)
    damage(servers.stored(WEIGHTS_FILE))
    for _ in range(2):
        with pytest.raises(InvalidAdapter, match=f"{WEIGHTS_FILE} of stored adapter {files.digest[:12]}"):
            other.fetch(files.digest)
    assert other.digests() == []
    assert list((servers.root / "other" / "adapters").iterdir()) == []


def test_a_full_disk_is_told(files: Files, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(servers.start("one"), files)
    other = servers.start("other")

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adapters.blobs.blobs.sync", full)
    with pytest.raises(RegistryUnavailable, match=r"can't be kept in .*other: No space left on device"):
        other.fetch(files.digest)
    assert other.digests() == []


def test_many_threads_fetch_once(files: Files, tmp_path: Path, bucket: s3.S3Bucket, front: s3.Proxy) -> None:
    commit(Blobs(tmp_path / "one", remote(bucket.url)), files)
    other = Blobs(tmp_path / "other", remote(bucket.url))
    front.requests.clear()
    front.misbehave = s3.slow(0.05)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(other.fetch, [files.digest] * 8))
    assert {*folders} == {other.folder(files.digest)}
    assert front.count("GET", WEIGHTS_FILE) == 1

    other.forget(files.digest)
    front.misbehave = s3.failing(1000, 403)
    with ThreadPoolExecutor(8) as pool:
        fates = [pool.submit(other.fetch, files.digest).exception() for _ in range(8)]
    assert {type(fate) for fate in fates} == {RegistryUnavailable}
    front.misbehave = lambda request: None
    assert contents(other.fetch(files.digest)) == files.contents
    other.close()


def test_the_cache_keeps_what_was_used_last_and_what_is_held(servers: Servers, tmp_path: Path) -> None:
    all_files = [adapter(tmp_path / "source", seed) for seed in range(4)]
    size = sum(map(len, all_files[0].contents.values()))
    one, other = servers.start("one"), servers.start("other", 2 * size + size // 2)
    for files in all_files:
        commit(one, files)
    a, b, c, d = (files.digest for files in all_files)
    for digest in (a, b, a, c):
        other.fetch(digest)
    assert {*other.digests()} == {a, c}
    other.in_use = lambda digest: digest == a
    other.fetch(d)
    assert {*other.digests()} == {a, d}
    other.in_use = lambda digest: digest in (a, d)
    other.fetch(b)
    assert {*other.digests()} == {a, b, d}  # over the budget rather than without what is held
    other.in_use = lambda digest: False
    commit(other, all_files[2])
    assert {*other.digests()} == {b, c}
    again = servers.start("other", size)
    again.fetch(a)
    assert again.digests() == [a]


def test_what_the_store_lacks_does_not_leave(servers: Servers, tmp_path: Path) -> None:
    """A server that had its adapters to itself is given a store."""
    old, damaged, new = (adapter(tmp_path / "source", seed) for seed in range(3))
    alone = Blobs(servers.root / "one")
    commit(alone, old)
    commit(alone, damaged)
    one = servers.start("one", 1)
    commit(one, new)
    assert {*one.digests()} == {old.digest, damaged.digest, new.digest}
    damage(one.folder(damaged.digest) / WEIGHTS_FILE)
    assert one.upload_missing([old.digest, damaged.digest, new.digest, "f" * 64]) == [old.digest]
    assert servers.start("other").fetch(old.digest).is_dir()
    one.fetch(new.digest)
    commit(one, new)
    assert {*one.digests()} == {damaged.digest, new.digest}


def test_a_store_that_is_away_costs_no_copies(tmp_path: Path, bucket: s3.S3Bucket, front: s3.Proxy) -> None:
    first, second = (adapter(tmp_path / "source", seed) for seed in range(2))
    blobs = Blobs(tmp_path / "data", remote(bucket.url), 1)
    commit(blobs, first)

    def only_writes(request: s3.Request) -> s3.Answer | None:
        evicting = request.method == "GET" and first.digest in request.path
        return s3.Answer(503) if evicting else None

    front.misbehave = only_writes
    commit(blobs, second)
    assert {*blobs.digests()} == {first.digest, second.digest}
    front.misbehave = lambda request: None
    commit(blobs, second)
    assert blobs.digests() == [second.digest]
    blobs.close()


def test_verify_and_quarantine_alone(files: Files, tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "data")
    assert blobs.verify(files.digest) == "it is not there"
    commit(blobs, files)
    assert blobs.verify(files.digest) is None
    assert blobs.quarantine(files.digest)
    assert blobs.verify(files.digest) is None  # a good copy is not touched
    damage(blobs.folder(files.digest) / WEIGHTS_FILE)
    assert "its content has digest" in str(blobs.verify(files.digest))
    assert not blobs.quarantine(files.digest)
    assert blobs.digests() == []
    (kept,) = (tmp_path / "data" / "quarantine").iterdir()
    assert kept.name.startswith(f"{files.digest}-20")
    assert (kept / WEIGHTS_FILE).is_file()
    commit(blobs, files)
    assert blobs.verify(files.digest) is None


def test_links_among_the_files_are_found_and_set_aside(files: Files, tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "data")
    commit(blobs, files)
    weights = blobs.folder(files.digest) / WEIGHTS_FILE
    weights.unlink()
    weights.symlink_to(files.weights)
    with pytest.raises(InvalidAdapter, match="is not a plain file"):
        blobs.fetch(files.digest)
    assert "is not a plain file" in str(blobs.verify(files.digest))
    assert not blobs.quarantine(files.digest)
    blobs.folder(files.digest).symlink_to(tmp_path)
    assert "is a symbolic link" in str(blobs.verify(files.digest))
    assert not blobs.quarantine(files.digest)
    commit(blobs, files)
    assert blobs.verify(files.digest) is None


def test_a_damaged_copy_is_replaced_from_the_store(files: Files, servers: Servers) -> None:
    one = servers.start("one")
    commit(one, files)
    damage(one.folder(files.digest) / WEIGHTS_FILE)
    assert one.verify(files.digest) is not None
    assert one.quarantine(files.digest)
    assert one.verify(files.digest) is None
    assert contents(one.fetch(files.digest)) == files.contents


@pytest.mark.parametrize("file", [WEIGHTS_FILE, MANIFEST_FILE])
def test_a_damaged_store_is_repaired_from_a_copy(file: str, files: Files, servers: Servers) -> None:
    one, other = servers.start("one"), servers.start("other")
    commit(one, files)
    damage(servers.stored(file))
    reason = one.verify(files.digest)
    assert reason is not None
    assert file in reason
    assert not other.quarantine(files.digest)  # it has no copy
    assert not other.has(files.digest)
    assert "does not have it" in str(one.verify(files.digest))
    assert one.quarantine(files.digest)
    assert contents(other.fetch(files.digest)) == files.contents
    (kept,) = (servers.shared / "quarantine").iterdir()
    assert (kept / MANIFEST_FILE).is_file()


def test_a_store_that_agrees_with_itself_but_not_with_the_digest(
    files: Files, servers: Servers, tmp_path: Path
) -> None:
    wrong = adapter(tmp_path / "source", 1)
    one, other = servers.start("one"), servers.start("other")
    with one.stage(wrong.config, wrong.weights, 1 << 30) as staged:
        one.commit(staged, files.digest)
    assert f"its content has digest {wrong.digest[:12]}" in str(other.verify(files.digest))
    assert not one.quarantine(files.digest)
    assert one.digests() == []
    assert not other.has(files.digest)


@pytest.mark.parametrize("digest", ["", "..", "../quarantine", "A" * 64, "a" * 64 + "\n"])
def test_only_digests_are_looked_for(digest: str, servers: Servers) -> None:
    blobs = servers.start("one")
    for use in (
        blobs.folder,
        blobs.has,
        blobs.fetch,
        blobs.remove,
        blobs.forget,
        blobs.verify,
        blobs.quarantine,
        lambda digest: blobs.commit(servers.root, digest),
    ):
        with pytest.raises(AdapterNotFound):
            use(digest)


def test_opening_tries_the_store(bucket: s3.S3Bucket, tmp_path: Path) -> None:
    open_blobs(tmp_path / "data", bucket.url, 1000).close()
    assert bucket.list() == []
    began = time.monotonic()
    with pytest.raises(RegistryUnavailable, match="not found: The specified bucket does not exist"):
        open_blobs(tmp_path / "data", "s3://no-such-bucket", None)
    assert time.monotonic() - began < 5
    with pytest.raises(AdapterError, match="--blob-cache-gb is for the cache of a --blob-url"):
        open_blobs(tmp_path / "data", None, 1000)
    open_blobs(tmp_path / "data", f"file://{tmp_path / 'shared'}", None)
    assert list((tmp_path / "shared").iterdir()) == []
