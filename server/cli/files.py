"""An adapter's files on this side: read and checked before they are sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from adapters.checkpoint.config_fields import HEAD_TASKS
from adapters.checkpoint.strict_json import parse_object
from adapters.errors import InvalidAdapter
from server.cli.exits import Failed

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
LABELS_FILE = "labels.json"
LINEAGE_FILE = "lineage.json"
LINEAGE_FIELDS = ("parent", "parent_digest", "job", "data", "scores")
"""What the registry keeps of `lineage.json`; other tools may have more in it."""
MAX_TEXT = 1024**2
MAX_HEADER = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class Adapter:
    """What to send. `parts` are the upload's parts of text besides the two files."""

    config: Path
    weights: Path
    parts: Mapping[str, str]


def read_adapter(folder: Path, lineage: Path | None = None, parent: str | None = None) -> Adapter:
    """The adapter in a folder that PEFT saved.

    Only what needs no model is checked here; the server checks everything.

    Args:
        lineage: used in place of the folder's own `lineage.json`.
        parent: ref of the version that its training began with.

    Raises:
        Failed: a file is missing, or is not what its name says.
    """
    config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    if not folder.is_dir():
        raise Failed(f"{folder}: no such folder")
    if not weights.is_file() and (folder / "adapter_model.bin").is_file():
        raise Failed(
            f"{folder}/adapter_model.bin is a pickle, not safetensors; "
            "re-save it with safe_serialization=True"
        )
    for path in (config, weights):
        if not path.is_file():
            raise Failed(f"{folder} holds no {path.name}")
    try:
        task = _read_object(config).get("task_type")
        _check_safetensors(weights)
        parts = _lineage_parts(folder, lineage, parent)
        labels = _labels(folder, task)
    except OSError as error:
        raise Failed(f"{error.filename or folder}: {error.strerror}") from None
    return Adapter(config, weights, parts if labels is None else {**parts, "labels": labels})


def sha256_of(file: BufferedReader) -> str:
    """Hex; of what is in the file from where it stands."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def _lineage_parts(folder: Path, given: Path | None, parent: str | None) -> dict[str, str]:
    """The parts `lineage` and `quantization`, as far as there is something to say."""
    found: dict[str, Any] = {}
    if given is not None:
        found = _read_object(given)
    elif (folder / LINEAGE_FILE).is_file():
        found = _read_object(folder / LINEAGE_FILE)
    quantization = found.pop("quantization", None)
    if given is None:
        found = {field: found[field] for field in LINEAGE_FIELDS if field in found}
    if parent is not None:
        found = {**found, "parent": parent, "parent_digest": None}
    lineage = {field: value for field, value in found.items() if value not in (None, [], {})}
    parts = {"lineage": json.dumps(lineage)} if lineage else {}
    return parts if quantization is None else {**parts, "quantization": str(quantization)}


def _labels(folder: Path, task: object) -> str | None:
    """The names of a head's outputs: of their own file, or the model's where the adapter has a head."""
    if (folder / LABELS_FILE).is_file():
        return _read_text(folder / LABELS_FILE)
    model = folder / "config.json"
    if task not in HEAD_TASKS or not model.is_file():
        return None
    text = _read_text(model)
    return text if '"id2label"' in text else None


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        text = file.read(MAX_TEXT + 1)
    if len(text) > MAX_TEXT:
        raise Failed(f"{path} is larger than {MAX_TEXT} bytes")
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise Failed(f"{path} is not UTF-8 text") from None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return parse_object(_read_text(path).encode(), str(path))
    except InvalidAdapter as error:
        raise Failed(str(error)) from None


def _check_safetensors(path: Path) -> None:
    """Whether the file begins and ends as safetensors do; its tensors are the server's to check."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise Failed(f"{path} is truncated, or not a safetensors file")
        header = file.read(length)
    try:
        entries = parse_object(header, f"{path}: its safetensors header")
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except InvalidAdapter as error:
        raise Failed(str(error)) from None
    except (KeyError, IndexError, TypeError):
        raise Failed(f"{path}: its safetensors header has an entry without data_offsets") from None
    if size != whole:
        raise Failed(f"{path} is {size} bytes, but its safetensors header tells of {whole}")
