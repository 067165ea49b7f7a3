"""The identity of an adapter's content: what it computes, not how its files are laid out.

The digest covers, for each wrapped module in order of name: its scale, and dtype, shape and bytes of A and B.
All that the config says about an answer is in the scales and in which tensors there are; so where the base
was stored, the order of `target_modules`, dropout, file metadata and the order or prefix of tensors do not
count, and the same adapter saved twice has one digest.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from adapters.config import LoraConfig
from adapters.errors import InvalidAdapter
from adapters.keys import pair_factors
from adapters.limits import AdapterLimits
from adapters.safetensors_file import TensorInfo, read_header

_DOMAIN = b"multilora adapter 1"
_CHUNK = 1024**2


def content_digest(config: LoraConfig, weights: Path, limits: AdapterLimits) -> str:
    """Hex SHA-256 of the adapter; reads the file in pieces of 1 MiB.

    Raises:
        InvalidAdapter, AdapterTooLarge: as `read_header` and `pair_factors`.
    """
    header = read_header(weights, limits)
    modules = pair_factors(header)
    hasher = hashlib.sha256()

    def add(field: bytes) -> None:
        # Every field has its length before it, so that no two lists of fields give the same bytes.
        hasher.update(len(field).to_bytes(8, "little") + field)

    add(_DOMAIN)
    with weights.open("rb") as file:
        for module, keys in modules.items():
            add(module.encode("utf-8", "surrogatepass"))
            add(config.scale_for(module).hex().encode())
            for info in (header[keys.a], header[keys.b]):
                add(info.dtype.encode())
                add(",".join(map(str, info.shape)).encode())
                hasher.update((info.end - info.start).to_bytes(8, "little"))
                _add_data(hasher, file, info)
    return hasher.hexdigest()


def _add_data(hasher: hashlib._Hash, file: BinaryIO, info: TensorInfo) -> None:
    file.seek(info.start)
    left = info.end - info.start
    while left:
        piece = file.read(min(left, _CHUNK))
        if not piece:
            raise InvalidAdapter("the weights changed while they were read")
        hasher.update(piece)
        left -= len(piece)
