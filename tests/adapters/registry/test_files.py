"""Stored files are hashed once, and again when they were touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adapters.base import BaseSpec
from adapters.checkpoint.digest import content_digest
from adapters.errors import AdapterNotFound, InvalidAdapter
from adapters.registry.files import Files
from tests.adapters.conftest import LIMITS, AdapterFiles


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Each weights file that is hashed."""
    found: list[Path] = []

    def counted(config: object, weights: Path, *rest: object) -> str:
        found.append(weights)
        return content_digest(config, weights, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("adapters.registry.files.content_digest", counted)
    return found


def test_files_are_hashed_until_they_are_trusted(
    base: BaseSpec, files: AdapterFiles, hashed: list[Path]
) -> None:
    reader = Files(base, LIMITS)
    _, adapter = reader.check(files.folder, files.config, ())
    for _ in range(2):
        assert reader.load(files.folder, adapter.digest).digest == adapter.digest
    assert len(hashed) == 2  # by `check`, and by the first `load`
    reader.forget(adapter.digest)
    reader.load(files.folder, adapter.digest)
    assert len(hashed) == 3
    reader.forget(adapter.digest)
    reader.trust(adapter.digest, files.folder)
    reader.load(files.folder, adapter.digest)
    assert len(hashed) == 3


def test_a_change_of_the_same_size_is_found(base: BaseSpec, files: AdapterFiles) -> None:
    reader = Files(base, LIMITS)
    _, adapter = reader.check(files.folder, files.config, ())
    reader.load(files.folder, adapter.digest)
    content = bytearray(files.weights.read_bytes())
    content[-1] ^= 1
    replaced = files.folder / "other"
    replaced.write_bytes(content)
    os.replace(replaced, files.weights)
    message = f"stored adapter {adapter.digest[:12]} can't be loaded: its files were changed or damaged"
    with pytest.raises(InvalidAdapter, match=message):
        reader.load(files.folder, adapter.digest)


def test_files_that_are_gone(base: BaseSpec, tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound, match="no adapter with digest dddddddddddd"):
        Files(base, LIMITS).load(tmp_path, "d" * 64)
