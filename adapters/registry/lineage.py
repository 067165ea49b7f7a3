"""Where an adapter comes from: PEFT's files do not say, so its publisher may.

A folder may have it in `lineage.json`, beside whatever else stands there:

    {"quantization": "nf4",                                 of its base while it was trained
     "parent": "tone@3", "parent_digest": "9f86...",        what its training started from
     "job": "ft-17",                                        the training that made it
     "data": [{"name": "train.jsonl", "sha256": "2c26..."}],
     "scores": {"accuracy": 0.93}}
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from adapters.base import BaseSpec
from adapters.checkpoint.strict_json import parse_object
from adapters.errors import InvalidAdapter
from adapters.quantized import Quantization
from adapters.registry.records import DataFile, Lineage

LINEAGE_FILE = "lineage.json"
MAX_LINEAGE_BYTES = 1024**2
UNQUANTIZED = "none"
_KNOWN = (UNQUANTIZED, *get_args(Quantization))
_MAX_CHARS = 1000
_MAX_ENTRIES = 1000
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_quantization(value: object) -> str:
    """`none`, `nf4`, `fp4` or `int8`.

    Raises:
        InvalidAdapter: it is something else.
    """
    if not isinstance(value, str) or value not in _KNOWN:
        raise InvalidAdapter(f"quantization: {str(value)[:100]!r} is not one of {', '.join(_KNOWN)}")
    return value


def lineage_beside(folder: Path) -> dict[str, object]:
    """The folder's `lineage.json`; empty if it is not there.

    Raises:
        InvalidAdapter: it is no JSON object, or too large.
    """
    path = folder / LINEAGE_FILE
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        text = file.read(MAX_LINEAGE_BYTES + 1)
    if len(text) > MAX_LINEAGE_BYTES:
        raise InvalidAdapter(f"{LINEAGE_FILE} is larger than {MAX_LINEAGE_BYTES} bytes")
    return parse_object(text, LINEAGE_FILE)


def quantization_beside(folder: Path) -> str | None:
    """What the folder's `lineage.json` says; None if it says nothing, or is not there.

    Raises:
        InvalidAdapter: it is no JSON object, too large, or names something that is not known.
    """
    found = lineage_beside(folder).get("quantization")
    return None if found is None else check_quantization(found)


def parse_lineage(found: Mapping[str, object]) -> Lineage:
    """What of a JSON object is lineage; other fields are left alone.

    Raises:
        InvalidAdapter: naming a field of the wrong type, or one that is too long.
    """
    parent_digest = _text(found, "parent_digest")
    if parent_digest is not None and not _DIGEST.fullmatch(parent_digest):
        raise InvalidAdapter(f"lineage: parent_digest {parent_digest[:100]!r} is not 64 hex digits")
    data, scores = found.get("data") or [], found.get("scores") or {}
    if not isinstance(data, list) or len(data) > _MAX_ENTRIES:
        raise InvalidAdapter(f"lineage: data must be a list of at most {_MAX_ENTRIES} files")
    if not isinstance(scores, Mapping) or len(scores) > _MAX_ENTRIES:
        raise InvalidAdapter(f"lineage: scores must be an object of at most {_MAX_ENTRIES} numbers")
    return Lineage(
        parent=_text(found, "parent"),
        parent_digest=parent_digest,
        job=_text(found, "job"),
        data=tuple(_data_file(each) for each in data),
        scores=tuple((_short(name, "a score's name"), _score(name, value)) for name, value in scores.items()),
    )


def lineage_object(lineage: Lineage) -> dict[str, object]:
    """As `parse_lineage` reads it; what is not known is left out."""
    found: dict[str, object] = {
        name: value for name, value in asdict(lineage).items() if value and name not in ("data", "scores")
    }
    if lineage.data:
        found["data"] = [asdict(file) for file in lineage.data]
    if lineage.scores:
        found["scores"] = dict(lineage.scores)
    return found


def _text(found: Mapping[str, object], field: str) -> str | None:
    value = found.get(field)
    return None if value is None else _short(value, field)


def _short(value: object, what: str) -> str:
    if not isinstance(value, str) or len(value) > _MAX_CHARS:
        raise InvalidAdapter(f"lineage: {what} must be a text of at most {_MAX_CHARS} characters")
    return value


def _data_file(value: object) -> DataFile:
    if not isinstance(value, Mapping):
        raise InvalidAdapter("lineage: data must be a list of objects with a name and a sha256")
    digest = value.get("sha256")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InvalidAdapter(f"lineage: sha256 {str(digest)[:100]!r} of a data file is not 64 hex digits")
    return DataFile(_short(value.get("name"), "a data file's name"), digest)


def _score(name: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidAdapter(f"lineage: score {name[:100]!r} must be a finite number")
    return number


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
