"""Blobs in a bucket: whole or not there, and never believed without a look at their bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event

import pytest

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.blobs.manifest import MANIFEST_FILE
from adapters.blobs.remote import RemoteStore
from adapters.blobs.shared import SharedFolder
from adapters.errors import AdapterNotFound, InvalidAdapter, RegistryUnavailable
from tests import s3
from tests.adapters.blobs.stand import Files, adapter, contents, laid_out, remote

ROOT = Path(__file__).parents[3]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return adapter(tmp_path / "source")


@pytest.fixture
def staged(files: Files, tmp_path: Path) -> Path:
    return laid_out(files, tmp_path / "staged")


def fetched(store: RemoteStore, digest: str, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    store.fetch(digest, folder)
    return contents(folder)


def test_one_store_reads_what_another_published(
    bucket: s3.S3Bucket, files: Files, staged: Path, tmp_path: Path
) -> None:
    (staged / "labels.json").write_bytes(b'["a"]')
    (staged / "derived.safetensors").write_bytes(b"of this machine")
    one, other = remote(bucket.url), remote(bucket.url)
    one.publish(files.digest, staged)
    assert other.has(files.digest)
    assert fetched(other, files.digest, tmp_path / "got") == files.contents | {"labels.json": b'["a"]'}
    assert len(bucket.list()) == 4
    one.remove(files.digest)
    assert not other.has(files.digest)
    assert bucket.list() == []
    one.remove(files.digest)
    with pytest.raises(AdapterNotFound, match=files.digest[:12]):
        other.fetch(files.digest, tmp_path)


def test_two_writers_at_once_do_not_tear_each_other(bucket: s3.S3Bucket, tmp_path: Path) -> None:
    """Same digest, other bytes: whatever is read are the files of one of the two."""
    editions = [adapter(tmp_path / "source", note=note) for note in ("a", "b")]
    assert editions[0].digest == editions[1].digest
    stores = [remote(bucket.url) for _ in editions]
    for round_ in range(4):
        start = Barrier(2)

        def publish(number: int, start: Barrier = start, round_: int = round_) -> None:
            folder = laid_out(editions[number], tmp_path / f"{round_}-{number}")
            start.wait()
            stores[number].publish(editions[number].digest, folder)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(publish, range(2)))
        got = fetched(stores[0], editions[0].digest, tmp_path / f"got-{round_}")
        assert got in [edition.contents for edition in editions]
        stores[0].remove(editions[0].digest)


def test_a_second_publication_uploads_nothing(
    bucket: s3.S3Bucket, front: s3.Proxy, files: Files, staged: Path
) -> None:
    store = remote(bucket.url)
    store.publish(files.digest, staged)
    assert front.count("PUT") == 3
    store.publish(files.digest, staged)
    assert front.count("PUT") == 3


def flip(bucket: s3.S3Bucket, key: str) -> None:
    data = bytearray(bucket.get(key))
    data[len(data) // 2] ^= 1
    bucket.put(key, bytes(data))


def cut(bucket: s3.S3Bucket, key: str) -> None:
    bucket.put(key, bucket.get(key)[:-5])


def empty(bucket: s3.S3Bucket, key: str) -> None:
    bucket.put(key, b"")


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_damage_is_named_and_repaired_by_publishing_again(
    file: str, bucket: s3.S3Bucket, files: Files, staged: Path, tmp_path: Path
) -> None:
    store = remote(bucket.url)
    store.publish(files.digest, staged)
    for damage in (flip, cut, empty, s3.S3Bucket.delete):
        damage(bucket, bucket.key(file))
        message = rf"{file} of stored adapter {files.digest[:12]} is .*; publish it again"
        with pytest.raises(InvalidAdapter, match=message):
            store.fetch(files.digest, tmp_path)
        store.publish(files.digest, staged)
        assert fetched(store, files.digest, tmp_path / damage.__name__) == files.contents


def test_a_damaged_manifest_too(bucket: s3.S3Bucket, files: Files, staged: Path, tmp_path: Path) -> None:
    store = remote(bucket.url)
    store.publish(files.digest, staged)
    for number, text in enumerate([b"", b"{", b"[]", b'{"format": 1}']):
        bucket.put(f"{files.digest}/{MANIFEST_FILE}", text)
        with pytest.raises(InvalidAdapter, match=f"manifest.json of stored adapter {files.digest[:12]}"):
            store.fetch(files.digest, tmp_path)
        store.publish(files.digest, staged)
        assert fetched(store, files.digest, tmp_path / str(number)) == files.contents


def test_without_its_manifest_a_blob_is_not_there(
    bucket: s3.S3Bucket, files: Files, staged: Path, tmp_path: Path
) -> None:
    store = remote(bucket.url)
    store.publish(files.digest, staged)
    bucket.delete(f"{files.digest}/{MANIFEST_FILE}")
    assert not store.has(files.digest)
    with pytest.raises(AdapterNotFound):
        store.fetch(files.digest, tmp_path)
    flip(bucket, bucket.key(WEIGHTS_FILE))  # what lies there is not believed either
    store.publish(files.digest, staged)
    assert fetched(store, files.digest, tmp_path / "got") == files.contents


def test_what_was_garbled_on_its_way_is_fetched_again(
    bucket: s3.S3Bucket, front: s3.Proxy, files: Files, staged: Path, tmp_path: Path
) -> None:
    store = remote(bucket.url)
    store.publish(files.digest, staged)
    key, good = bucket.key(WEIGHTS_FILE), bucket.get(bucket.key(WEIGHTS_FILE))
    flip(bucket, key)

    def mend(request: s3.Request) -> None:
        if request.method == "GET" and front.count("GET", WEIGHTS_FILE) == 2:
            bucket.put(key, good)

    front.requests.clear()
    front.misbehave = mend
    assert fetched(store, files.digest, tmp_path / "got") == files.contents


def test_quarantine_moves_everything_away(bucket: s3.S3Bucket, files: Files, staged: Path) -> None:
    store = remote(bucket.url)
    store.publish(files.digest, staged)
    before = {key: bucket.get(key) for key in bucket.list()}
    store.quarantine(files.digest, "label")
    assert not store.has(files.digest)
    after = {key: bucket.get(key) for key in bucket.list()}
    assert after == {
        f"quarantine/label/{key.removeprefix(f'{files.digest}/')}": data for key, data in before.items()
    }
    assert store.older_than(0) == []


def test_manifests_go_first(bucket: s3.S3Bucket, front: s3.Proxy, files: Files, staged: Path) -> None:
    store = remote(bucket.url)
    for leave in (store.remove, lambda digest: store.quarantine(digest, "label")):
        store.publish(files.digest, staged)
        front.requests.clear()
        leave(files.digest)
        deleted = [request.path for request in front.requests if request.method == "DELETE"]
        assert deleted[0].endswith(f"{files.digest}/{MANIFEST_FILE}")
        assert len(deleted) >= 3


def test_only_what_lies_long_enough_is_garbage(tmp_path: Path, files: Files, staged: Path) -> None:
    store = RemoteStore(SharedFolder(tmp_path / "shared"))
    store.publish(files.digest, staged)
    unfinished = tmp_path / "shared" / ("f" * 64) / "e" / CONFIG_FILE
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"")
    (tmp_path / "shared" / "other").write_bytes(b"")
    assert sorted(store.older_than(0)) == sorted([files.digest, "f" * 64])
    assert store.older_than(3600) == []
    then = time.time() - 7200
    os.utime(unfinished, (then, then))
    assert store.older_than(3600) == ["f" * 64]
    store.remove("f" * 64)
    assert store.older_than(0) == [files.digest]


@pytest.mark.parametrize("digest", ["", "..", "a/b", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_only_digests_become_keys(digest: str, tmp_path: Path) -> None:
    store = RemoteStore(SharedFolder(tmp_path / "shared"))
    for use in (
        store.has,
        store.remove,
        lambda digest: store.publish(digest, tmp_path),
        lambda digest: store.fetch(digest, tmp_path),
        lambda digest: store.quarantine(digest, "label"),
    ):
        with pytest.raises(AdapterNotFound):
            use(digest)


def test_a_probe_leaves_nothing(bucket: s3.S3Bucket) -> None:
    remote(bucket.url).probe()
    remote(f"s3://{bucket.name}").probe()
    assert bucket.list() == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_probe_tells_what_is_not_allowed(method: str, bucket: s3.S3Bucket, front: s3.Proxy) -> None:
    front.misbehave = s3.failing(1, 403, lambda request: request.method == method)
    with pytest.raises(RegistryUnavailable, match="permission denied"):
        remote(bucket.url).probe()


def test_killed_in_the_middle_of_an_upload(
    bucket: s3.S3Bucket, front: s3.Proxy, files: Files, staged: Path, tmp_path: Path
) -> None:
    """Nothing of it can be fetched, and the next publication is whole."""
    code = (
        "import sys; from pathlib import Path; from tests.adapters.blobs.stand import remote\n"
        f"remote({bucket.url!r}).publish({files.digest!r}, Path({str(staged)!r}))"
    )
    reached = Event()

    def hold(request: s3.Request) -> None:
        if request.method == "PUT" and request.path.endswith(WEIGHTS_FILE):
            reached.set()
            killed.wait(30)

    killed = Event()
    front.misbehave = hold
    environment = os.environ | s3.environment(front.url)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment)
    assert reached.wait(60)
    process.kill()
    process.wait()
    killed.set()
    store = remote(bucket.url)
    assert bucket.list() != []  # the config is there
    assert not store.has(files.digest)
    with pytest.raises(AdapterNotFound):
        store.fetch(files.digest, tmp_path)
    store.publish(files.digest, staged)
    assert fetched(store, files.digest, tmp_path / "got") == files.contents
