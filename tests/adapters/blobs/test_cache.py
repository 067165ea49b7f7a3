"""The cache's index: what leaves first, and how much."""

from __future__ import annotations

import os
from pathlib import Path

from adapters.blobs.cache import CacheIndex
from adapters.blobs.local import BlobStore

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


def put(root: Path, digest: str, size: int, age: int = 0) -> None:
    folder = root / digest
    folder.mkdir()
    (folder / "file").write_bytes(b"x" * size)
    os.utime(folder, (1000 - age, 1000 - age))


def test_the_longest_unused_leave_first(tmp_path: Path) -> None:
    for digest, age in ((A, 1), (B, 3), (C, 2)):
        put(tmp_path, digest, 10, age)
    index = CacheIndex(BlobStore(tmp_path), 25)
    assert index.total == 30
    assert next(index.excess()) == B
    index.use(B)
    assert next(index.excess()) == C
    index.drop(C)
    assert list(index.excess()) == []


def test_no_more_leaves_than_must(tmp_path: Path) -> None:
    for digest, age in ((A, 3), (B, 2), (C, 1)):
        put(tmp_path, digest, 10, age)
    index = CacheIndex(BlobStore(tmp_path), 10)
    gone = []
    for digest in index.excess():
        index.drop(digest)
        gone.append(digest)
    assert gone == [A, B]


def test_the_last_one_stays_however_large(tmp_path: Path) -> None:
    put(tmp_path, A, 100)
    index = CacheIndex(BlobStore(tmp_path), 10)
    assert list(index.excess()) == []


def test_use_measures_again_and_survives_a_restart(tmp_path: Path) -> None:
    for digest, age in ((A, 2), (B, 1)):
        put(tmp_path, digest, 10, age)
    index = CacheIndex(BlobStore(tmp_path), 5)
    (tmp_path / A / "derived").write_bytes(b"x" * 7)
    os.utime(tmp_path / A, (998, 998))
    index.use(A)
    assert index.total == 27
    again = CacheIndex(BlobStore(tmp_path), 5)
    assert list(again.excess()) == [B]


def test_without_a_budget_nothing_leaves(tmp_path: Path) -> None:
    put(tmp_path, A, 10)
    put(tmp_path, B, 10)
    assert list(CacheIndex(BlobStore(tmp_path), None).excess()) == []
