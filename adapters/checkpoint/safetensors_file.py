"""A strict reader of safetensors files.

The header is checked in full first, so that a hostile or damaged file is refused with a clear line before
anything of its declared size is allocated. Then the whole file is mapped once: the safetensors library makes
a mapping and several objects for each tensor, which takes longer than reading them all.

Format: 8 bytes little-endian header length, a JSON object of `{name: {dtype, shape, data_offsets}}`, then
the data.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from adapters.checkpoint.strict_json import parse_object
from adapters.errors import AdapterTooLarge, InvalidAdapter
from adapters.limits import AdapterLimits

MAX_HEADER_BYTES = 16 * 1024**2
MAX_DIMENSIONS = 8
MAX_EXTENT = 2**40
MAX_NAME = 500
MAX_COMMAS = 16
"""For each tensor that a header may have. What is parsed takes many times the memory of its text."""

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ITEM_BYTES = {name: dtype.itemsize for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies. `start` and `end` are byte offsets in the file, `dtype` a safetensors name."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path, limits: AdapterLimits) -> dict[str, TensorInfo]:
    """Every tensor of the file, in the order of its header; reads no tensor data.

    Raises:
        InvalidAdapter: not a well-formed safetensors file of floating-point tensors.
        AdapterTooLarge: the file, its header or the number of its tensors is over a limit.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise InvalidAdapter("cannot read the weights: there is no such file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limits.max_file_bytes:
                raise AdapterTooLarge(
                    f"the weights are {size} bytes; the limit is {limits.max_file_bytes} bytes"
                )
            data_start, entries = _read_entries(file, size, MAX_COMMAS * limits.max_tensors)
    except OSError as error:
        raise InvalidAdapter(f"cannot read the weights: {error.strerror}") from None
    if len(entries) > limits.max_tensors:
        raise AdapterTooLarge(f"the weights hold {len(entries)} tensors; the limit is {limits.max_tensors}")
    tensors = {name: _parse_tensor(name, entry, data_start) for name, entry in entries.items()}
    _check_coverage(tensors, data_start, size)
    return tensors


def map_file(path: Path, header: Mapping[str, TensorInfo]) -> Tensor:
    """The bytes of a file with this header, mapped: `(bytes,)` uint8. What is written there stays private.

    Raises:
        InvalidAdapter: the file is shorter now than its header says.
    """
    size = max((info.end for info in header.values()), default=0)
    try:
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except RuntimeError:
        raise InvalidAdapter("the weights changed while they were read") from None


def tensor_at(data: Tensor, info: TensorInfo) -> Tensor:
    """One tensor of a mapped file; a copy only if it does not lie at a multiple of its item size."""
    part = data[info.start : info.end]
    if info.start % ITEM_BYTES[info.dtype]:
        part = part.clone()
    return part.view(DTYPES[info.dtype]).view(info.shape)


def _read_entries(file: BinaryIO, size: int, max_commas: int) -> tuple[int, dict[str, Any]]:
    """Where the data begins, and the header's entries without the metadata."""
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    # A header's length may begin with the same bytes as a pickle does; the length tells them apart.
    if prefix.startswith((b"PK", b"\x80")) and (len(prefix) < 8 or 8 + length > size):
        raise InvalidAdapter(
            "the file is a pickle/zip checkpoint, not safetensors; re-save it with safe_serialization=True"
        )
    if len(prefix) < 8:
        raise InvalidAdapter(f"the safetensors file is truncated: expected at least 8 bytes, got {size}")
    if length > MAX_HEADER_BYTES:
        raise InvalidAdapter(
            f"not a safetensors file: its header would be {length} bytes, the most is {MAX_HEADER_BYTES}"
        )
    if 8 + length > size:
        raise InvalidAdapter(
            f"the safetensors file is truncated: expected at least {8 + length} bytes, got {size}"
        )
    text = file.read(length)
    if (commas := text.count(b",")) > max_commas:
        raise AdapterTooLarge(f"the safetensors header has {commas} commas; the limit is {max_commas}")
    entries = parse_object(text, "the safetensors header")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidAdapter("the safetensors header's __metadata__ must map strings to strings")
    return 8 + length, entries


def _parse_tensor(name: str, entry: object, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidAdapter(
            f"tensor {name!r:.200}: its header entry needs dtype, shape and data_offsets only"
        )
    if len(name) > MAX_NAME:
        raise InvalidAdapter(
            f"tensor {name!r:.200}: a name of {len(name)} characters; the most is {MAX_NAME}"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise InvalidAdapter(
            f"tensor {name!r:.200}: dtype {dtype!r:.60} is not one of {', '.join(ITEM_BYTES)}"
        )
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise InvalidAdapter(f"tensor {name!r:.200}: shape must be a list of at most {MAX_DIMENSIONS} sizes")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InvalidAdapter(f"tensor {name!r:.200}: data_offsets must be [begin, end]")
    begin, end = offsets
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != expected:
        raise InvalidAdapter(
            f"tensor {name!r:.200}: {dtype} of shape {shape} takes {expected} bytes, "
            f"its offsets span {end - begin}"
        )
    return TensorInfo(dtype, tuple(shape), data_start + begin, data_start + end)


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_EXTENT for item in value)


def _check_coverage(tensors: dict[str, TensorInfo], data_start: int, size: int) -> None:
    """Tensors lie end to end from the header to the end of the file: no overlap, no gap, no rest."""
    position = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != position:
            fault = "overlaps the one before it" if info.start < position else "leaves a gap before it"
            raise InvalidAdapter(f"tensor {name!r:.200} {fault} in the safetensors file")
        position = info.end
    if position > size:
        raise InvalidAdapter(f"the safetensors file is truncated: expected {position} bytes, got {size}")
    if position < size:
        raise InvalidAdapter(f"the safetensors file has {size - position} bytes after its last tensor")
