"""A header's length is its first eight bytes, and no length makes a good file look like a pickle."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch

from adapters.checkpoint.safetensors_file import read_header
from adapters.errors import InvalidAdapter
from adapters.limits import AdapterLimits

LIMITS = AdapterLimits()
ENTRY = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def _write(path: Path, length: int) -> Path:
    text = json.dumps(ENTRY).encode()
    path.write_bytes(struct.pack("<Q", length) + text.ljust(length) + bytes(8))
    return path


@pytest.mark.parametrize("length", [*range(0x78, 0x90), 0x280, 0x480, 0x1080, 0x4B50, 0x24B50])
def test_every_header_length_is_read(length: int, tmp_path: Path) -> None:
    assert read_header(_write(tmp_path / "x", length), LIMITS)["x"].shape == (2,)


def _zip(path: Path) -> None:
    torch.save({"x": torch.ones(2)}, path)


def _legacy(path: Path) -> None:
    torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=False)


def _short(path: Path) -> None:
    path.write_bytes(pickle.dumps({}, protocol=2))


def _framed(path: Path) -> None:
    path.write_bytes(pickle.dumps({"x": list(range(9))}, protocol=4))


@pytest.mark.parametrize("save", [_zip, _legacy, _short, _framed])
def test_a_pickle_is_called_one(save: object, tmp_path: Path) -> None:
    assert callable(save)
    save(tmp_path / "x")
    with pytest.raises(InvalidAdapter, match="pickle/zip checkpoint"):
        read_header(tmp_path / "x", LIMITS)
