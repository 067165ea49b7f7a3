"""The identity of an adapter's content: what it computes, not how its files are laid out.

Of plain LoRA the digest covers, for each wrapped module in order of name: its scale, and dtype, shape and
bytes of A and B. All that the config says about an answer is in the scales and in which tensors there are. Of
everything else it covers the config's fields that decide about answers, every tensor that does, by name, and
the labels. So where the base was stored, the order of `target_modules`, dropout, file metadata and the order
or prefix of tensors do not count, and the same adapter saved twice has one digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from adapters.checkpoint.config import AdapterConfig, LoraConfig
from adapters.checkpoint.keys import Names, sort_names
from adapters.checkpoint.safetensors_file import TensorInfo, read_header
from adapters.errors import InvalidAdapter
from adapters.limits import AdapterLimits

_PLAIN = b"multilora adapter 1"
_OTHER = b"multilora adapter 2"
_CHUNK = 1024**2


def content_digest(
    config: AdapterConfig, weights: Path, limits: AdapterLimits, labels: tuple[str, ...] = ()
) -> str:
    """Hex SHA-256 of the adapter; reads the file in pieces of 1 MiB.

    Raises:
        InvalidAdapter, AdapterTooLarge: as `read_header` and `sort_names`.
    """
    header = read_header(weights, limits)
    names = sort_names(header, config)
    hasher = hashlib.sha256()

    def add(field: bytes) -> None:
        # Every field has its length before it, so that no two lists of fields give the same bytes.
        hasher.update(len(field).to_bytes(8, "little") + field)

    with weights.open("rb") as file:

        def add_tensor(key: str) -> None:
            info = header[key]
            add(info.dtype.encode())
            add(",".join(map(str, info.shape)).encode())
            hasher.update((info.end - info.start).to_bytes(8, "little"))
            _add_data(hasher, file, info)

        if isinstance(config, LoraConfig) and config.is_plain and not labels:
            _add_plain(config, names, add, add_tensor)
        else:
            add(_OTHER)
            add(_canonical(config).encode("utf-8", "surrogatepass"))
            add(json.dumps(labels).encode())
            for place, key in _places(names):
                add(place.encode("utf-8", "surrogatepass"))
                add_tensor(key)
    return hasher.hexdigest()


def _add_plain(
    config: LoraConfig, names: Names, add: Callable[[bytes], None], add_tensor: Callable[[str], None]
) -> None:
    add(_PLAIN)
    for module, parts in names.modules.items():
        add(module.encode("utf-8", "surrogatepass"))
        add(config.scale_for(module).hex().encode())
        for part in sorted(parts):
            add_tensor(parts[part])


def _canonical(config: AdapterConfig) -> str:
    """The fields that decide about answers, however they were ordered; lists of names are sets."""
    fields = {field: sorted(value) if _is_names(value) else value for field, value in config.decisive.items()}
    return json.dumps(fields, sort_keys=True)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _places(names: Names) -> Iterator[tuple[str, str]]:
    """Each tensor that counts, with what it is."""
    groups = {"module": names.modules, "saved": names.saved}
    for kind, group in groups.items():
        for module, parts in group.items():
            for part, key in sorted(parts.items()):
                yield f"{kind} {module} {part}", key
    for kind, single in {"bias": names.biases, "tokens": names.tokens, "tuner": names.tuner}.items():
        for name, key in single.items():
            yield f"{kind} {name}", key


def _add_data(hasher: hashlib._Hash, file: BinaryIO, info: TensorInfo) -> None:
    file.seek(info.start)
    left = info.end - info.start
    while left:
        piece = file.read(min(left, _CHUNK))
        if not piece:
            raise InvalidAdapter("the weights changed while they were read")
        hasher.update(piece)
        left -= len(piece)
