"""What every kind of store must do, tried on a folder, on S3, and on fsspec's own store in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from adapters.blobs.bucket import Bucket
from adapters.blobs.objects import Objects
from adapters.blobs.shared import SharedFolder
from tests.adapters.blobs.stand import QUICK


@pytest.fixture(params=["folder", "s3", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Objects]:
    if request.param == "folder":
        store: Objects = SharedFolder(tmp_path / "shared")
    elif request.param == "memory":
        store = Bucket(f"memory://{uuid4().hex}/prefix", QUICK)
    else:
        store = Bucket(request.getfixturevalue("bucket").url, QUICK)
    yield store
    store.close()


def test_what_is_created_stays(objects: Objects, tmp_path: Path) -> None:
    assert objects.create("a/one", b"first")
    assert not objects.create("a/one", b"second")
    assert objects.read("a/one", 0, 100) == b"first"
    (tmp_path / "file").write_bytes(b"from a file")
    assert objects.create("a/b/two", tmp_path / "file")
    assert not objects.create("a/b/two", tmp_path / "file")
    assert objects.read("a/b/two", 5, 2) == b"a "


def test_put_replaces(objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"longer than before")
    objects.put("a/one", b"first")
    objects.put("a/one", tmp_path / "file")
    assert objects.read("a/one", 0, 100) == b"longer than before"


def test_reads_end_where_the_object_ends(objects: Objects) -> None:
    objects.put("one", b"12345")
    assert objects.read("one", 3, 100) == b"45"
    assert objects.read("one", 5, 10) == b""
    assert objects.read("one", 50, 10) == b""
    with pytest.raises(FileNotFoundError):
        objects.read("other", 0, 1)


def test_pieces_of_a_large_object_come_in_order(objects: Objects, tmp_path: Path) -> None:
    data = b"".join(index.to_bytes(4, "little") for index in range(2_400_000))  # 9.6 MB: 3 pieces
    (tmp_path / "file").write_bytes(data)
    objects.create("large", tmp_path / "file")
    assert objects.read("large", 4, len(data)) == data[4:]


def test_list_tells_what_is_there_and_when_it_was_written(objects: Objects) -> None:
    assert dict(objects.list("")) == {}
    assert dict(objects.list("nothing")) == {}
    for key in ("a/one", "a/b/two", "ab/three", "four"):
        objects.put(key, b"")
    assert objects.list("").keys() == {"a/one", "a/b/two", "ab/three", "four"}
    assert objects.list("a").keys() == {"a/one", "a/b/two"}
    assert all(abs(time.time() - written) < 60 for written in objects.list("").values())


def test_move_and_delete(objects: Objects) -> None:
    objects.put("a/one", b"1")
    objects.move("a/one", "q/a/one")
    assert objects.list("").keys() == {"q/a/one"}
    assert objects.read("q/a/one", 0, 9) == b"1"
    objects.delete("q/a/one")
    objects.delete("q/a/one")
    assert dict(objects.list("")) == {}


@pytest.mark.parametrize("objects", ["folder", "s3"], indirect=True)
def test_of_many_creators_one_wins(objects: Objects) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = [b"%d" % number * 1000 for number in range(8)]
        won = list(pool.map(lambda text: objects.create("key", text), texts))
    assert won.count(True) == 1
    assert objects.read("key", 0, 10_000) == texts[won.index(True)]
