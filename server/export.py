"""Write a base with one adapter merged as a plain model folder, for any other tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters.base import BaseSpec, ExpertsSpec
from adapters.batch.survey import SeenLinear, survey
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.reader import read_adapter
from adapters.delta import AdapterWeights, EmbeddingDelta, ExpertsDelta
from adapters.errors import AdapterError, InvalidAdapter
from adapters.limits import AdapterLimits
from adapters.merge import merged_bias, merged_weight
from adapters.weights import base_weights
from server.engine import loading


def export_merged(source: str, adapter: Path, output: Path, dtype: str = "auto") -> None:
    """Load `source`, add `adapter`, save to `output` with the tokenizer. Neither input is written to.

    Args:
        source: base model, a folder or a hub id.
        adapter: a PEFT LoRA folder.
        output: the folder to make; must not exist or be empty.
        dtype: the type to save; `auto` keeps the base's.

    Raises:
        UnsupportedModel, AdapterError: an input can't be used, or the base's architecture has no place for
            what the adapter does; the message names it.
        FileExistsError: `output` holds something.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"--output {output} is not empty; choose another folder")
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (adapter / file).is_file():
            raise InvalidAdapter(f"{adapter} holds no {file}")
    folder = loading.resolve_folder(source)
    config = loading.load_config(folder)
    quantization = loading.stored_quantization(config)
    if quantization is not None:
        raise loading.UnsupportedModel(
            f"{source} is quantised ({quantization}): merge into the checkpoint that is not"
        )
    cpu = torch.device("cpu")
    stored = getattr(config, "dtype", None) or torch.float32
    model = loading.load_model(folder, config, stored if dtype == "auto" else loading.DTYPES[dtype], cpu)
    seen = survey(model)
    spec = seen.describe(model, name=source, digest=loading.base_digest(folder), source=source)
    size = (adapter / WEIGHTS_FILE).stat().st_size
    limits = AdapterLimits(max_rank=2**20, max_file_bytes=size)
    weights = read_adapter(
        (adapter / CONFIG_FILE).read_bytes(),
        adapter / WEIGHTS_FILE,
        spec,
        limits,
        base_weights=base_weights(model, {linear.name: linear for linear in seen.seen}),
    )
    merge_into(model, spec, seen.seen, weights)
    model.save_pretrained(output)
    loading.load_tokenizer(folder).save_pretrained(output)


def merge_into(
    model: PreTrainedModel, spec: BaseSpec, linears: Sequence[SeenLinear], weights: AdapterWeights
) -> None:
    """Put all of an adapter into the parameters of `model`, which `spec` and `linears` describe.

    Raises:
        AdapterError: the architecture has no place for something; the message names it.
    """
    _refuse_rest(weights)
    untied = _untie(model, weights)
    for name, embedding in weights.embeddings.items():
        table = model.get_submodule(name)
        both = untied and table is model.get_input_embeddings()
        _merge_embedding(table.weight, model.get_output_embeddings().weight if both else None, embedding)
    for linear in {linear.name: linear for linear in linears}.values():  # some are seen twice
        delta = weights.deltas.get(linear.name)
        if delta is not None:
            merged = merged_weight(linear.weight, delta)
            stored_form = merged.t().contiguous() if isinstance(linear.module, Conv1D) else merged
            bias = merged_bias(linear.bias, delta, merged)
            _set(linear.name, linear.module, "weight", stored_form)
            if bias is not None:
                _set(linear.name, linear.module, "bias", bias)
    for name, experts in weights.experts.items():
        path, _, key = name.rpartition(".")
        module = model.get_submodule(path)
        _set(path, module, key, _merged_experts(getattr(module, key), spec.experts[name], experts))
    for name, parameters in weights.replaced.items():
        for key, value in parameters.items():
            _set(name, model.get_submodule(name), key, value)


def _refuse_rest(weights: AdapterWeights) -> None:
    reason = None
    if weights.head:
        reason = f"its task head {', '.join(weights.head)} has no place in a model that generates"
    elif weights.invocation:
        reason = "it acts from its invocation tokens on only (aLoRA)"
    if reason:
        raise AdapterError(
            f"the adapter can't be merged: {reason}. Serve it beside the base with --adapter NAME=PATH"
        )


def _set(name: str, module: nn.Module, key: str, value: Tensor) -> None:
    """Replace one parameter, in its own type. One that the module lacks, no checkpoint of it can hold."""
    old = getattr(module, key, None)
    if isinstance(old, Tensor):
        setattr(module, key, nn.Parameter(value.to(old.dtype), requires_grad=False))
    elif value.any():
        raise AdapterError(
            f"the adapter can't be merged: it adds a {key} to {name}, which has none in this architecture. "
            "Serve it beside the base with --adapter NAME=PATH"
        )


def _merged_experts(weight: Tensor, shape: ExpertsSpec, delta: ExpertsDelta) -> Tensor:
    """See `ExpertsDelta`; float32."""
    added = delta.scale * (delta.b.float() @ delta.a.float())
    if shape.router:
        added = added[0]
    elif shape.transposed:
        added = added.transpose(1, 2)
    return weight.float() + added


def _untie(model: PreTrainedModel, weights: AdapterWeights) -> bool:
    """Give the output head a weight of its own, if the adapter changes either it or the embeddings alone."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not table.weight:
        return False
    own = {*weights.deltas, *weights.replaced}
    own |= {name for name, embedding in weights.embeddings.items() if embedding.a is not None}
    if not any(model.get_submodule(name) in (head, table) for name in own):
        return False
    head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    return True


def _merge_embedding(table: Tensor, head: Tensor | None, embedding: EmbeddingDelta) -> None:
    """See `EmbeddingDelta`. `head`: of the output, if it was the same as the table, but is no more."""
    with torch.no_grad():
        if embedding.ids is not None and embedding.rows is not None:
            for weight in (table, head):
                if weight is not None:
                    weight[embedding.ids] = embedding.rows.to(weight.dtype)
        if embedding.a is not None and embedding.b is not None:
            added = embedding.scale * (embedding.b.float() @ embedding.a.float()).t()
            table.copy_(table.float() + added)
