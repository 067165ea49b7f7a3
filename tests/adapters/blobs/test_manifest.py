"""Manifests say what a blob consists of, and nothing that they say is believed before it is checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from adapters.blobs.manifest import Manifest, StoredFile
from adapters.errors import InvalidAdapter
from tests.adapters.blobs.stand import adapter, laid_out

DIGEST = "d" * 64
ENTRY = {"sha256": "0" * 64, "size": 1}
FILES = {"adapter_config.json": ENTRY, "adapter_model.safetensors": ENTRY}


def text(**fields: Any) -> bytes:
    return json.dumps({"format": 1, "digest": DIGEST, "files": FILES} | fields).encode()


def test_it_describes_the_files_and_reads_back(tmp_path: Path) -> None:
    files = adapter(tmp_path)
    folder = laid_out(files, tmp_path / "staged")
    (folder / "derived.safetensors").write_bytes(b"of this machine")
    (folder / "labels.json").write_bytes(b'["a"]')
    manifest = Manifest.describe(files.digest, folder)

    expected = files.contents | {"labels.json": b'["a"]'}
    assert manifest.files == {
        name: StoredFile(hashlib.sha256(data).hexdigest(), len(data)) for name, data in expected.items()
    }
    assert Manifest.parse(manifest.text(), files.digest) == manifest


def test_an_edition_is_named_after_the_bytes(tmp_path: Path) -> None:
    one, other = adapter(tmp_path, note="a"), adapter(tmp_path, note="b")
    assert one.digest == other.digest
    editions = [
        Manifest.describe(files.digest, laid_out(files, tmp_path / str(index))).edition
        for index, files in enumerate([one, other, one])
    ]
    assert editions[0] == editions[2] != editions[1]
    assert len(editions[0]) == 32


def with_file(name: str, entry: object) -> bytes:
    return text(files=FILES | {name: entry})


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff", "not UTF-8"),
        (b"[]", "must be a JSON object"),
        (text()[:-1] + b', "format": 1}', "given twice"),
        (text(format=2), "has format 2, this release reads 1"),
        (text(format=None), "has format None"),
        (text(digest="e" * 64), "not the one of this digest"),
        (text(files=[]), "not the one of this digest"),
        (text(files={}), "must list adapter_config.json, adapter_model.safetensors and at most labels.json"),
        (with_file("../../etc/passwd", ENTRY), "must list adapter_config.json"),
        (with_file("derived.safetensors", ENTRY), "must list adapter_config.json"),
        (with_file("labels.json", None), "labels.json must have a sha256"),
        (with_file("labels.json", {"sha256": "0" * 64}), "labels.json must have a sha256"),
        (with_file("labels.json", {"sha256": "0" * 64, "size": -1}), "labels.json must have a sha256"),
        (with_file("labels.json", {"sha256": "0" * 64, "size": True}), "labels.json must have a sha256"),
        (with_file("labels.json", {"sha256": "0" * 64, "size": 1.5}), "labels.json must have a sha256"),
        (with_file("labels.json", {"sha256": "../x", "size": 1}), "labels.json must have a sha256"),
        (with_file("labels.json", {"sha256": "0" * 64, "size": 1, "path": "x"}), "labels.json must have"),
    ],
)
def test_others_are_refused_by_name(manifest: bytes, message: str) -> None:
    assert Manifest.parse(text(), DIGEST).digest == DIGEST
    with pytest.raises(InvalidAdapter, match=message) as caught:
        Manifest.parse(manifest, DIGEST)
    assert "manifest.json of stored adapter dddddddddddd" in str(caught.value)
