"""The digest of the content is what tells a good copy from a damaged one."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.blobs.content import why_damaged
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from tests.adapters.blobs.stand import adapter, laid_out


def test_whole_files_are_fine(tmp_path: Path) -> None:
    files = adapter(tmp_path)
    assert why_damaged(laid_out(files, tmp_path / "blob"), files.digest) is None


def test_other_files_are_not(tmp_path: Path) -> None:
    files, other = adapter(tmp_path), adapter(tmp_path, seed=1)
    reason = why_damaged(laid_out(other, tmp_path / "blob"), files.digest)
    assert reason == f"its content has digest {other.digest[:12]}"


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_and_cut_files_are_not(file: str, tmp_path: Path) -> None:
    files = adapter(tmp_path)
    folder = laid_out(files, tmp_path / "blob")
    (folder / file).write_bytes(files.contents[file][:-1])
    assert "can't be read" in str(why_damaged(folder, files.digest))
    (folder / file).unlink()
    assert "can't be read" in str(why_damaged(folder, files.digest))


def test_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    files = adapter(tmp_path)
    folder = laid_out(files, tmp_path / "blob")
    data = bytearray(files.contents[WEIGHTS_FILE])
    data[-1] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(data)
    assert "its content has digest" in str(why_damaged(folder, files.digest))
