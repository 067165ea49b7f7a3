"""A shared folder: what is special about files. The rest is in test_objects.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from adapters.blobs.shared import SharedFolder
from adapters.errors import RegistryUnavailable


@pytest.fixture
def store(tmp_path: Path) -> SharedFolder:
    return SharedFolder(tmp_path / "shared")


def test_nothing_half_written_stays_or_shows(
    store: SharedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adapters.blobs.shared.sync", full)
    with pytest.raises(RegistryUnavailable, match="No space left on device"):
        store.create("a/one", b"1")
    with pytest.raises(RegistryUnavailable, match="No space left"):
        store.put("a/one", b"1")
    assert store.list("") == {}


def test_a_disk_without_hard_links_does(store: SharedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*args: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    assert store.create("a/one", b"first")
    assert not store.create("a/one", b"second")
    assert store.read("a/one", 0, 9) == b"first"
    assert store.list("").keys() == {"a/one"}


def test_links_are_not_followed(store: SharedFolder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "one").write_bytes(b"secret")
    (tmp_path / "shared" / "folder").symlink_to(outside)
    (tmp_path / "shared" / "file").symlink_to(outside / "one")
    for key in ("folder/one", "file"):
        for attempt in (
            lambda key=key: store.read(key, 0, 9),
            lambda key=key: store.put(key, b"x"),
            lambda key=key: store.create(key, b"x"),
            lambda key=key: store.move(key, "there"),
        ):
            with pytest.raises(RegistryUnavailable, match="is a symbolic link; remove it"):
                attempt()
    with pytest.raises(RegistryUnavailable, match="is a symbolic link"):
        store.delete("folder/one")
    assert store.list("").keys() == {"file"}
    store.delete("file")  # the link itself may go
    assert (outside / "one").read_bytes() == b"secret"
    assert store.list("") == {}


def test_empty_folders_go_too(store: SharedFolder, tmp_path: Path) -> None:
    store.put("a/b/one", b"1")
    store.put("a/two", b"2")
    store.delete("a/b/one")
    assert sorted(path.name for path in (tmp_path / "shared").rglob("*")) == ["a", "two"]
    store.move("a/two", "c/two")
    assert sorted(path.name for path in (tmp_path / "shared").rglob("*")) == ["c", "two"]


def test_a_place_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RegistryUnavailable, match=r"file://.*/file/shared failed"):
        SharedFolder(tmp_path / "file" / "shared")
