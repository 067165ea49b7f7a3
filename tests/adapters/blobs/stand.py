"""Small adapters by hand, and stores to put them into."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from adapters.blobs.blobs import Blobs
from adapters.blobs.bucket import Bucket, Patience
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.blobs.remote import RemoteStore
from adapters.checkpoint.config import parse_config
from adapters.checkpoint.digest import content_digest
from adapters.limits import AdapterLimits

QUICK = Patience(connect=1, read=1, attempts=4, requests=1, pause=0.01, longest=5)
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
MOST = 1 << 40


@dataclass(frozen=True)
class Files:
    """An adapter as PEFT saves it. Its config and its weights' header may differ under one digest."""

    config: bytes
    weights: Path
    digest: str

    @property
    def contents(self) -> dict[str, bytes]:
        return {CONFIG_FILE: self.config, WEIGHTS_FILE: self.weights.read_bytes()}


def adapter(folder: Path, seed: int = 0, note: str = "", width: int = 8) -> Files:
    """One of rank 2; `note` changes the bytes of both files, and not what the adapter computes."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 2}
    config = json.dumps(fields | {"target_modules": ["q_proj"], "base_model_name_or_path": note}).encode()
    tensors = {
        f"{MODULE}.lora_A.weight": draw.standard_normal((2, width), np.float32),
        f"{MODULE}.lora_B.weight": draw.standard_normal((width, 2), np.float32),
    }
    weights = folder / f"{seed}-{note}-{width}.safetensors"
    save_file(tensors, weights, {"note": note})
    limits = AdapterLimits()
    return Files(config, weights, content_digest(parse_config(config, limits), weights, limits))


def commit(blobs: Blobs, files: Files) -> None:
    with blobs.stage(files.config, files.weights, MOST) as staged:
        blobs.commit(staged, files.digest)


def laid_out(files: Files, folder: Path) -> Path:
    """The files in a folder, as they are staged."""
    folder.mkdir(parents=True)
    for name, data in files.contents.items():
        (folder / name).write_bytes(data)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def remote(url: str, patience: Patience = QUICK) -> RemoteStore:
    """The store behind an S3 URL, with little patience."""
    return RemoteStore(Bucket(url, patience))
