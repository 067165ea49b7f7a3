"""Only well-formed files pass, and no file makes anything but our own errors."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from adapters.base import BaseSpec
from adapters.checkpoint.reader import read_adapter
from adapters.checkpoint.safetensors_file import map_file, read_header, tensor_at
from adapters.errors import AdapterTooLarge, InvalidAdapter
from adapters.limits import AdapterLimits
from tests.adapters.conftest import LIMITS, AdapterFiles

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    tensors = {"b": torch.ones(2, 3), "a": torch.ones(4, dtype=torch.bfloat16)}
    save_file(tensors, path, {"format": "pt"})
    header = read_header(path, LIMITS)
    assert {name: (info.dtype, info.shape) for name, info in header.items()} == {
        "b": ("F32", (2, 3)),
        "a": ("BF16", (4,)),
    }
    assert max(info.end for info in header.values()) == path.stat().st_size


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"x": F32}, 7, "truncated: expected"),
        ({"x": F32}, 9, "has 1 bytes after its last tensor"),
        ({"x": F32 | {"dtype": "I64"}}, 16, "dtype 'I64' is not one of F64, F32, F16, BF16"),
        ({"x": F32 | {"dtype": ["F32"]}}, 8, "dtype"),
        ({"x": F32 | {"shape": [3]}}, 8, "F32 of shape [3] takes 12 bytes, its offsets span 8"),
        ({"x": F32 | {"shape": [-2]}}, 8, "shape must be a list"),
        ({"x": F32 | {"shape": [True, 2]}}, 8, "shape must be a list"),
        ({"x": F32 | {"shape": [2**62, 4]}}, 8, "shape must be a list"),
        ({"x": F32 | {"shape": [1] * 9 + [2]}}, 8, "shape must be a list"),
        ({"x": F32 | {"data_offsets": [8, 0]}}, 8, "data_offsets must be"),
        ({"x": F32 | {"data_offsets": [4, 12]}}, 12, "leaves a gap"),
        ({"x": F32, "y": F32}, 8, "overlaps"),
        ({"x": F32 | {"extra": 1}}, 8, "needs dtype, shape and data_offsets only"),
        ({"x": [1]}, 8, "needs dtype, shape and data_offsets only"),
        ({"x" * 501: F32}, 8, "a name of 501 characters"),
        ({"__metadata__": {"a": 1}, "x": F32}, 8, "__metadata__ must map strings to strings"),
        ([], 0, "must be a JSON object"),
        (b'{"x": 1, "x": 2}', 0, "key 'x' is given twice"),
        (b"{", 0, "is not valid JSON"),
        (b"\xff{}", 0, "is not UTF-8"),
        (b"[" * 100_000, 0, "is nested too deeply"),
        (b'{"x": ' + b"9" * 5000 + b"}", 0, "is not valid JSON"),
    ],
)
def test_malformed(header: Any, data: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        read_header(write(tmp_path / "x", header, bytes(data)), LIMITS)
    assert message in str(caught.value)


def test_lengths_beyond_the_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter, match="its header would be"):
        read_header(write(tmp_path / "x", {}, length=2**63), LIMITS)
    with pytest.raises(InvalidAdapter, match="expected at least 1008 bytes, got 10"):
        read_header(write(tmp_path / "x", {}, length=1000), LIMITS)
    (tmp_path / "x").write_bytes(b"abc")
    with pytest.raises(InvalidAdapter, match="expected at least 8 bytes, got 3"):
        read_header(tmp_path / "x", LIMITS)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02}"])
def test_pickle_and_zip(start: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(start + bytes(100))
    with pytest.raises(InvalidAdapter, match="pickle/zip checkpoint, not safetensors"):
        read_header(tmp_path / "x", LIMITS)


def test_limits(files: AdapterFiles, tmp_path: Path) -> None:
    with pytest.raises(AdapterTooLarge, match="the limit is 100 bytes"):
        read_header(files.weights, AdapterLimits(max_file_bytes=100))
    with pytest.raises(AdapterTooLarge, match="hold 12 tensors; the limit is 5"):
        read_header(files.weights, AdapterLimits(max_tensors=5))


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InvalidAdapter, match="cannot read the weights"):
            read_header(path, LIMITS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_mutations_never_escape(data: st.DataObject, files: AdapterFiles, base: BaseSpec) -> None:
    original = files.weights.read_bytes()
    length = int.from_bytes(original[:8], "little")
    header = json.loads(original[8 : 8 + length])
    mutant = files.folder / "mutant"
    kind = data.draw(st.sampled_from(["bytes", "cut", "field", "entry"]))
    if kind == "bytes":
        content = bytearray(original)
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, length + 20))] = data.draw(st.integers(0, 255))
        mutant.write_bytes(content)
    elif kind == "cut":
        mutant.write_bytes(original[: data.draw(st.integers(0, len(original)))])
    else:
        name = data.draw(st.sampled_from(sorted(header)))
        if kind == "entry" or name == "__metadata__":
            header[name] = data.draw(json_values)
        else:
            header[name][data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = data.draw(
                json_values
            )
        write(mutant, header, original[8 + length :])
    message = ""
    try:
        read_adapter(files.config, mutant, base, LIMITS)
    except (InvalidAdapter, AdapterTooLarge) as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 2000


@pytest.mark.parametrize("pad", range(9))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_mapped_tensors_are_those_that_were_saved(tmp_path: Path, dtype: torch.dtype, pad: int) -> None:
    """Wherever the data begins: a header may have any length."""
    tensors = {name: torch.randn(3, 5).to(dtype) for name in "ab"} | {"half": torch.randn(7).bfloat16()}
    path = tmp_path / "file.safetensors"
    save_file(tensors, path)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(struct.pack("<Q", end - 8 + pad) + content[8:end] + b" " * pad + content[end:])
    header = read_header(path, AdapterLimits())
    data = map_file(path, header)
    for name, tensor in tensors.items():
        assert torch.equal(tensor_at(data, header[name]), tensor)


def test_a_file_cut_after_its_header_was_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"a": torch.zeros(4096)}, path)
    header = read_header(path, AdapterLimits())
    os.truncate(path, 5000)
    with pytest.raises(InvalidAdapter, match="changed while they were read"):
        map_file(path, header)
