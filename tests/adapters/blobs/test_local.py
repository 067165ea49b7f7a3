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


@pytest.mark.parametrize("digest", ["", "..", "../" + "a" * 61, "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_only_digests_become_paths(digest: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound):
        BlobStore(tmp_path).folder(digest)
