"""Names of the outputs of an adapter's head. PEFT's files do not have them; a text of their own may."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from adapters.base import BaseSpec
from adapters.checkpoint.config_fields import HEAD_TASKS
from adapters.checkpoint.strict_json import parse_json
from adapters.errors import InvalidAdapter

LABELS_FILE = "labels.json"
MAX_LABELS_BYTES = 1024**2


def parse_labels(text: bytes) -> tuple[str, ...]:
    """The labels in order: from a JSON list, or from an object with transformers' `id2label`.

    Raises:
        InvalidAdapter: it is neither.
    """
    if len(text) > MAX_LABELS_BYTES:
        raise InvalidAdapter(f"the labels are {len(text)} bytes; the limit is {MAX_LABELS_BYTES} bytes")
    value = parse_json(text, "the list of labels")
    if isinstance(value, dict):
        value = _in_order(value.get("id2label"))
    if not isinstance(value, list) or not all(isinstance(label, str) and label for label in value):
        raise InvalidAdapter('the labels must be a list of names, or {"id2label": {"0": name, ...}}')
    if len(set(value)) != len(value):
        raise InvalidAdapter("the labels have a name twice; each output needs one of its own")
    return tuple(value)


def head_labels(
    head: Mapping[str, Tensor], labels: tuple[str, ...], task: str | None, base: BaseSpec
) -> tuple[str, ...]:
    """One label for each output of the task's head; if none is given `LABEL_0` and so on, as in transformers.

    An adapter that does not bring what counts the outputs has the head of the base's checkpoint, and the
    labels of that.

    Raises:
        InvalidAdapter: there are labels without a head, or not one for each output.
    """
    spec = base.heads.get(task or "")
    if spec is None and not head:
        if labels:
            raise InvalidAdapter(f"{len(labels)} labels for an adapter that has no head; leave them out")
        return ()
    counting = min(spec.by_label) if spec is not None else _last_layer(head)
    if counting in head:
        outputs = head[counting].shape[0]
    else:
        outputs, labels = len(base.labels), labels or base.labels
    if labels and len(labels) != outputs:
        raise InvalidAdapter(f"{len(labels)} labels for a head of {outputs} outputs; give one for each")
    return labels or tuple(f"LABEL_{index}" for index in range(outputs))


def read_text(path: Path, limit: int) -> bytes:
    """A text that may be one byte over its limit, so that whoever checks that sees it."""
    with path.open("rb") as file:
        return file.read(limit + 1)


def stored_labels(folder: Path) -> tuple[str, ...]:
    """The labels in the folder of a stored adapter, if some were given."""
    path = folder / LABELS_FILE
    return parse_labels(read_text(path, MAX_LABELS_BYTES)) if path.is_file() else ()


def labels_beside(folder: Path, config: bytes) -> bytes | None:
    """The labels in a folder that PEFT saved: their own file, or those of the model, if it has a head."""
    if (folder / LABELS_FILE).is_file():
        return read_text(folder / LABELS_FILE, MAX_LABELS_BYTES)
    if not any(f'"{task}"'.encode() in config for task in HEAD_TASKS):
        return None
    path = folder / "config.json"
    text = read_text(path, MAX_LABELS_BYTES) if path.is_file() else b""
    return text if b'"id2label"' in text else None


def _last_layer(head: Mapping[str, Tensor]) -> str:
    """The weight of the head's last linear layer: the only one, or the one named `out_proj`."""
    weights = {name: tensor for name, tensor in head.items() if tensor.dim() == 2}
    last = [name for name in weights if name.endswith("out_proj.weight")] or list(weights)
    if len(last) != 1:
        raise InvalidAdapter(f"can't tell which of {', '.join(head)} is the last layer of the head")
    return last[0]


def _in_order(table: object) -> object:
    """The values of `{"0": ..., "1": ...}` in the order of their keys."""
    if not isinstance(table, dict) or {*table} != {str(index) for index in range(len(table))}:
        return None
    return [table[str(index)] for index in range(len(table))]
