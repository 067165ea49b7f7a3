"""Messages between the server and the process that runs PEFT: a JSON header and safetensors bytes.

4 bytes: length of the header, big-endian │ header, UTF-8 JSON with "tensors": bytes that follow │ tensors
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_LENGTH = struct.Struct(">I")
MAX_HEADER_BYTES = 16 * 1024**2
MAX_TENSOR_BYTES = 2 * 1024**3


class Malformed(Exception):
    """The other side does not keep to the format."""


def pack(header: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """One message."""
    body = save(dict(tensors)) if tensors else b""
    text = json.dumps({**header, "tensors": len(body)}).encode()
    return _LENGTH.pack(len(text)) + text + body


def unpack(take: Callable[[int], bytes]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The next message. `take` gives exactly as many bytes as it is asked for.

    Raises:
        Malformed: it is none, or larger than any should be.
    """
    (length,) = _LENGTH.unpack(take(_LENGTH.size))
    if length > MAX_HEADER_BYTES:
        raise Malformed(f"a header of {length} bytes")
    try:
        header = json.loads(take(length))
        size = header.pop("tensors")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Malformed("the header is not a JSON object with the size of its tensors") from error
    if not isinstance(size, int) or not 0 <= size <= MAX_TENSOR_BYTES:
        raise Malformed(f"tensors of {size} bytes")
    try:
        return header, load(take(size)) if size else {}
    except SafetensorError as error:
        raise Malformed(f"tensors that are none: {error}") from error
