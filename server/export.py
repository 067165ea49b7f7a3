"""Write a base with one adapter merged as a plain model folder, for any other tool."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapters.errors import InvalidAdapter
from adapters.limits import AdapterLimits
from adapters.merge import merged_weight
from adapters.reader import read_adapter
from adapters.store import CONFIG_FILE, WEIGHTS_FILE
from adapters.survey import survey
from server.engine import loading


def export_merged(source: str, adapter: Path, output: Path, dtype: str = "auto") -> None:
    """Load `source`, add `adapter`, save to `output` with the tokenizer. Neither input is written to.

    Args:
        source: base model, a folder or a hub id.
        adapter: a PEFT LoRA folder.
        output: the folder to make; must not exist or be empty.
        dtype: the type to save; `auto` keeps the base's.

    Raises:
        UnsupportedModel, AdapterError: an input can't be used; the message names it.
        FileExistsError: `output` holds something.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"--output {output} is not empty; choose another folder")
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (adapter / file).is_file():
            raise InvalidAdapter(f"{adapter} holds no {file}")
    folder = loading.resolve_folder(source)
    config = loading.load_config(folder)
    cpu = torch.device("cpu")
    stored = getattr(config, "dtype", None) or torch.float32
    model = loading.load_model(folder, config, stored if dtype == "auto" else loading.DTYPES[dtype], cpu)
    seen = survey(model)
    spec = seen.describe(model, name=source, digest=loading.base_digest(folder), source=source)
    size = (adapter / WEIGHTS_FILE).stat().st_size
    limits = AdapterLimits(max_rank=2**20, max_file_bytes=size)
    weights = read_adapter((adapter / CONFIG_FILE).read_bytes(), adapter / WEIGHTS_FILE, spec, limits)
    for linear in seen.seen:
        delta = weights.deltas.get(linear.name)
        if delta is not None:
            merged = merged_weight(linear.weight, delta)
            stored_form = merged.t().contiguous() if isinstance(linear.module, Conv1D) else merged
            linear.module.weight = nn.Parameter(stored_form, requires_grad=False)
    head = model.get_output_embeddings()
    if spec.tied_head and any(
        linear.module is head and linear.name in weights.deltas for linear in seen.seen
    ):
        model.config.tie_word_embeddings = False  # the head is no longer the embedding
    model.save_pretrained(output)
    loading.load_tokenizer(folder).save_pretrained(output)
