"""Adapters made by PEFT with everything that is trained moved, and plain torch that applies records."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters.base import BaseSpec
from adapters.batch.survey import survey
from adapters.checkpoint.reader import read_adapter
from adapters.delta import AdapterWeights, EmbeddingDelta, ModuleDelta
from tests.adapters.conftest import LIMITS, AdapterFiles
from tests.tiny import VOCAB

TOKENS = torch.arange(2, 26)[None] * 7 % VOCAB


def untrained(model: PreTrainedModel, config: PeftConfig) -> Any:
    """PEFT's model of `config` on a copy of `model`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of fan_in_fan_out, which it then corrects itself
        return get_peft_model(copy.deepcopy(model), copy.deepcopy(config)).eval()


def trained(model: PreTrainedModel, folder: Path, config: PeftConfig, seed: int = 1, **save: Any) -> Any:
    """A copy of `model` with all that PEFT trains by `config` moved by chance; saved in `folder`."""
    torch.manual_seed(seed)  # PEFT draws what it begins with
    wrapped = untrained(model, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT looks for the base's config on the hub
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        wrapped.save_pretrained(folder, **save)
    return wrapped


def answers(model: Any, tokens: Tensor = TOKENS) -> Tensor:
    """The logits of a whole forward pass."""
    with torch.inference_mode():
        logits: Tensor = model(input_ids=tokens).logits
    return logits


def base_of(model: PreTrainedModel) -> BaseSpec:
    return survey(model).describe(model, name="tiny", digest="b" * 64)


def weights_of(model: PreTrainedModel) -> Callable[[str], Tensor]:
    """The base's parameters, linear ones as `(out_features, in_features)`."""

    def weights(name: str) -> Tensor:
        path, _, own = name.rpartition(".")
        parameter: Tensor = model.get_parameter(name).detach()
        return parameter.T if own == "weight" and isinstance(model.get_submodule(path), Conv1D) else parameter

    return weights


def read(model: PreTrainedModel, folder: Path, labels: tuple[str, ...] = ()) -> AdapterWeights:
    files = AdapterFiles(folder)
    return read_adapter(
        files.config, files.weights, base_of(model), LIMITS, labels=labels, base_weights=weights_of(model)
    )


def edit(folder: Path, **fields: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def applied(model: PreTrainedModel, weights: AdapterWeights, tied_head: str | None = None) -> PreTrainedModel:
    """A copy of `model` that computes what the records say, written down from their docstrings."""
    model = copy.deepcopy(model)
    for name, parameters in weights.replaced.items():
        for own, tensor in parameters.items():
            setattr(model.get_submodule(name), own, nn.Parameter(tensor))
    for name, experts in weights.experts.items():
        parameter = model.get_parameter(name)
        change = experts.scale * experts.b @ experts.a
        turned = getattr(model.get_submodule(name.rpartition(".")[0]), "is_transposed", False)
        change = change[0] if parameter.dim() == 2 else change.transpose(1, 2) if turned else change
        parameter.requires_grad_(False).add_(change)
    for name, delta in weights.deltas.items():
        model.get_submodule(name).register_forward_hook(_linear(delta))
    for name, embedding in weights.embeddings.items():
        model.get_submodule(name).register_forward_hook(_table(embedding))
        if tied_head and embedding.ids is not None:
            model.get_submodule(tied_head).register_forward_hook(_head(embedding))
    return model


def _linear(delta: ModuleDelta) -> Callable[[Any, Any, Tensor], Tensor]:
    def hook(module: Any, args: tuple[Tensor], y: Tensor) -> Tensor:
        y = y if delta.magnitude is None else y * delta.magnitude
        y = y + delta.scale * (args[0] @ delta.a.float().T) @ delta.b.float().T
        return y if delta.shift is None else y + delta.shift

    return hook


def _table(delta: EmbeddingDelta) -> Callable[[Any, Any, Tensor], Tensor]:
    def hook(module: Any, args: tuple[Tensor], y: Tensor) -> Tensor:
        scale = getattr(module, "embed_scale", 1.0)
        if delta.ids is not None and delta.rows is not None:
            for token, row in zip(delta.ids.tolist(), delta.rows, strict=True):
                y = torch.where((args[0] == token)[..., None], row * scale, y)
        if delta.a is None or delta.b is None:
            return y
        return y + scale * delta.scale * delta.a.T[args[0]] @ delta.b.T

    return hook


def _head(delta: EmbeddingDelta) -> Callable[[Any, Any, Tensor], Tensor]:
    def hook(module: Any, args: tuple[Tensor], y: Tensor) -> Tensor:
        assert delta.ids is not None
        assert delta.rows is not None
        return y.index_copy(-1, delta.ids, args[0] @ delta.rows.T)

    return hook
