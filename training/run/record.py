"""What a run was asked, kept beside it: a resume is refused where it is asked something else."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from training.folder import RunFolder
from training.spec import TrainSpec, spec_to_json


def make_record(
    spec: TrainSpec, base: str, base_files: str, train: str, validation: str, parent: str | None
) -> dict[str, Any]:
    """The JSON object that `RunFolder.spec` holds. All but spec and base are digests."""
    return {
        "spec": spec_to_json(spec),
        "base": base,
        "base_sha256": base_files,
        "train_sha256": train,
        "validation_sha256": validation,
        "parent_sha256": parent,
    }


def keep_record(run: RunFolder, record: Mapping[str, Any]) -> None:
    """Write it, whole or not at all."""
    run.run.mkdir(parents=True, exist_ok=True)
    half = run.spec.with_name(f".{run.spec.name}.part")
    half.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(half, run.spec)


def check_record(run: RunFolder, record: Mapping[str, Any]) -> None:
    """See that a resume is asked what the run was asked.

    Raises:
        ValueError: it is not; the message says what differs.
    """
    before = json.loads(run.spec.read_text(encoding="utf-8"))
    differs = list(_differences(before, json.loads(json.dumps(record))))
    if differs:
        raise ValueError(f"{run.path} holds a run with another {'; another '.join(differs)}")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[str]:
    for name, value in _flat(now["spec"]).items():
        was = _flat(before["spec"]).get(name)
        if was != value:
            yield f"{name}: {was}, not {value}"
    if before["base_sha256"] != now["base_sha256"]:
        yield f"base: {before['base']} as it was then, not {now['base']} as it is now"
    for name, what in (
        ("train_sha256", "training data"),
        ("validation_sha256", "validation data"),
        ("parent_sha256", "adapter to go on from"),
    ):
        if before[name] != now[name]:
            yield f"{what}: SHA-256 {before[name]}, not {now[name]}"


def _flat(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in spec.items() if name != "lora"}, **spec["lora"]}


def rows_digest(rows: Iterable[Any]) -> str:
    """Of encoded rows: the same for another file with the same content, and another for another tokenizer."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(f"{row!r}\n".encode())
    return hasher.hexdigest()


def files_digest(folder: Path) -> str:
    """Of a folder's weights and configs, by name."""
    hasher = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".json", ".safetensors"):
            with path.open("rb") as file:
                hasher.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return hasher.hexdigest()


def base_digest(base: str | Path, model: Any) -> str:
    """Of a base's files; of one from the hub, its commit."""
    folder = Path(base)
    return files_digest(folder) if folder.is_dir() else f"{base}@{model.config._commit_hash}"
