"""Blobs are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE, BlobStore
from adapters.errors import AdapterNotFound, AdapterTooLarge, InvalidAdapter

DIGEST = "a" * 64


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"12345")
    return path


def put(store: BlobStore, config: bytes, weights: Path) -> None:
    with store.stage(config, weights, 10) as staged:
        store.commit(staged, DIGEST)


def contents(store: BlobStore) -> tuple[bytes, bytes]:
    folder = store.folder(DIGEST)
    return (folder / CONFIG_FILE).read_bytes(), (folder / WEIGHTS_FILE).read_bytes()


def test_put_replace_remove(tmp_path: Path, weights: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    put(store, b"{}", weights)
    assert contents(store) == (b"{}", b"12345")
    weights.write_bytes(b"678")
    put(store, b"[]", weights)
    assert contents(store) == (b"[]", b"678")
    assert store.digests() == [DIGEST]
    store.remove(DIGEST)
    store.remove(DIGEST)
    assert store.digests() == []
    assert list((tmp_path / "blobs").iterdir()) == []


def test_what_is_not_committed_leaves_nothing(tmp_path: Path, weights: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    with pytest.raises(RuntimeError), store.stage(b"{}", weights, 10):
        raise RuntimeError
    with pytest.raises(AdapterTooLarge, match="5 bytes; the limit is 4"), store.stage(b"{}", weights, 4):
        pass
    with pytest.raises(InvalidAdapter, match="no such file"), store.stage(b"{}", tmp_path, 10):
        pass
    assert list((tmp_path / "blobs").iterdir()) == []


def test_leftovers_are_swept_at_start(tmp_path: Path) -> None:
    leftover = tmp_path / ".incoming-x"
    leftover.mkdir()
    (leftover / WEIGHTS_FILE).write_bytes(b"half")
    BlobStore(tmp_path)
    assert not leftover.exists()


def test_what_is_being_staged_is_no_leftover(tmp_path: Path, weights: Path) -> None:
    with BlobStore(tmp_path / "blobs").stage(b"{}", weights, 10) as staged:
        BlobStore(tmp_path / "blobs")  # a second server that starts by mistake
        assert (staged / WEIGHTS_FILE).read_bytes() == b"12345"


def test_links_are_refused_and_can_be_removed(tmp_path: Path, weights: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / WEIGHTS_FILE).write_bytes(b"theirs")
    (tmp_path / "blobs" / DIGEST).symlink_to(outside)
    for use in (store.folder, store.has, store.check, lambda digest: put(store, b"{}", weights)):
        with pytest.raises(InvalidAdapter, match="is a symbolic link, not a folder; remove it"):
            use(DIGEST)
    assert store.digests() == []
    store.remove(DIGEST)
    assert (outside / WEIGHTS_FILE).read_bytes() == b"theirs"

    put(store, b"{}", weights)
    store.check(DIGEST)
    (store.folder(DIGEST) / WEIGHTS_FILE).unlink()
    (store.folder(DIGEST) / WEIGHTS_FILE).symlink_to(outside / WEIGHTS_FILE)
    with pytest.raises(InvalidAdapter, match=f"{WEIGHTS_FILE} of stored adapter aaaaaaaaaaaa is not a plain"):
        store.check(DIGEST)


def test_size_and_setting_aside(tmp_path: Path, weights: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    assert store.size(DIGEST) == 0
    put(store, b"{}", weights)
    assert store.size(DIGEST) == 7
    store.set_aside(DIGEST, tmp_path / "quarantine" / "x")
    store.set_aside(DIGEST, tmp_path / "quarantine" / "y")
    assert (tmp_path / "quarantine" / "x" / CONFIG_FILE).read_bytes() == b"{}"
    assert not store.has(DIGEST)
    assert not (tmp_path / "quarantine" / "y").exists()


@pytest.mark.parametrize("digest", ["", "..", "../" + "a" * 61, "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_only_digests_become_paths(digest: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound):
        BlobStore(tmp_path).folder(digest)
