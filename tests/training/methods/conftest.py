"""A small base for the tests of a file, and a folder for what they write."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.methods.stand import Decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return Decoder("llama", folder / "llama").path
