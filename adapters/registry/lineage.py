"""How an adapter's base was quantised while it was trained: PEFT's files do not say, so its publisher may.

A folder may have it in `lineage.json`, as `{"quantization": "nf4"}` beside whatever else stands there.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from adapters.base import BaseSpec
from adapters.checkpoint.strict_json import parse_object
from adapters.errors import InvalidAdapter
from adapters.quantized import Quantization

LINEAGE_FILE = "lineage.json"
MAX_LINEAGE_BYTES = 1024**2
UNQUANTIZED = "none"
_KNOWN = (UNQUANTIZED, *get_args(Quantization))


def check_quantization(value: object) -> str:
    """`none`, `nf4`, `fp4` or `int8`.

    Raises:
        InvalidAdapter: it is something else.
    """
    if not isinstance(value, str) or value not in _KNOWN:
        raise InvalidAdapter(f"quantization: {str(value)[:100]!r} is not one of {', '.join(_KNOWN)}")
    return value


def quantization_beside(folder: Path) -> str | None:
    """What the folder's `lineage.json` says; None if it says nothing, or is not there.

    Raises:
        InvalidAdapter: it is no JSON object, too large, or names something that is not known.
    """
    path = folder / LINEAGE_FILE
    if not path.is_file():
        return None
    with path.open("rb") as file:
        text = file.read(MAX_LINEAGE_BYTES + 1)
    if len(text) > MAX_LINEAGE_BYTES:
        raise InvalidAdapter(f"{LINEAGE_FILE} is larger than {MAX_LINEAGE_BYTES} bytes")
    found = parse_object(text, LINEAGE_FILE).get("quantization")
    return None if found is None else check_quantization(found)


def quantization_warning(base: BaseSpec, trained_on: str | None) -> str | None:
    """What to say of an adapter that was trained on another form of the base; None if it was not, or nobody
    knows.

    `trained_on`: as `check_quantization` has it.
    """
    served = base.quantization or UNQUANTIZED
    if trained_on is None or trained_on == served:
        return None
    return (
        f"it was trained on its base with quantization {trained_on}, and is served on that base with "
        f"quantization {served}: it may answer differently than in training"
    )
