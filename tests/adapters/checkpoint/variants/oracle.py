"""PEFT as the oracle for readers of tuners: it makes, saves and runs adapters; records run in plain torch."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters.base import BaseSpec, LinearSpec
from adapters.delta import ModuleDelta
from tests.tiny import VOCAB, peft_model

# Fields that all tuners share: read once for all of them.
SHARED = {field.name for field in dataclasses.fields(PeftConfig)} | {
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "bias",
}
TOKENS = torch.arange(3, 27)[None] * 7 % VOCAB


@dataclass
class Files:
    """What one adapter folder holds, as readers get it."""

    folder: Path
    raw: dict[str, Any]
    tensors: dict[str, Tensor]

    def without(self, name: str) -> dict[str, Tensor]:
        """All tensors but one."""
        return {key: tensor for key, tensor in self.tensors.items() if key != name}


def save(model: Any, folder: Path, config: PeftConfig, seed: int = 1) -> Files:
    """An adapter of `config` on a copy of `model`, all that is trained moved by random amounts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of fan_in_fan_out, and looks for the base on the hub
        torch.manual_seed(seed)  # PEFT draws what it begins with
        wrapped = get_peft_model(copy.deepcopy(model), config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.25 * torch.randn(parameter.shape, generator=generator))
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    raw = json.loads((folder / "adapter_config.json").read_text())
    stored = load_file(folder / "adapter_model.safetensors")
    prefixes = ("base_model.model.", "base_model.")
    return Files(
        folder,
        raw,
        {
            name.removeprefix(next(prefix for prefix in prefixes if name.startswith(prefix))): tensor
            for name, tensor in stored.items()
        },
    )


def describe(model: Any) -> BaseSpec:
    """What readers know of the base. Its linear maps are in another order than the model's, as can be."""
    linears = {
        name: LinearSpec(name, *_features(module))
        for name, module in reversed(list(model.named_modules()))
        if isinstance(module, nn.Linear | Conv1D)
    }
    others = frozenset(name for name, _ in model.named_modules() if name and name not in linears)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return BaseSpec("base", "digest", linears, others, shapes)


def weights_of(model: Any) -> Any:
    """The base's own parameters, as readers get them."""

    def weights(name: str) -> Tensor:
        module = model.get_submodule(name.rpartition(".")[0])
        parameter: Tensor = model.get_parameter(name).detach().float()
        return parameter.T if isinstance(module, Conv1D) and parameter.dim() == 2 else parameter

    return weights


def read(tuner: Any, model: Any, files: Files, **changed: Any) -> dict[str, ModuleDelta]:
    """The records that `tuner` makes of `files`, with some fields of the config changed."""
    made: dict[str, ModuleDelta] = tuner.records(
        files.raw | changed, files.tensors, describe(model), weights_of(model)
    )
    return made


def logits(model: Any, records: Mapping[str, ModuleDelta]) -> Tensor:
    """The base's logits with `records` applied, in plain torch operations."""
    hooked = copy.deepcopy(model)
    for name, record in records.items():
        module = hooked.get_submodule(name)
        given: list[Tensor] = []
        module.register_forward_pre_hook(lambda _, args, r=record, g=given: _before(r, g, args[0]))
        module.register_forward_hook(lambda _m, _a, y, r=record, g=given: _after(r, g.pop(), y))
    return _forward(hooked)


def check(tuner: Any, model: Any, files: Files, rank: int | None = None) -> dict[str, ModuleDelta]:
    """That the records give PEFT's own logits, which are not the base's, and have this rank. Returns them."""
    records = read(tuner, model, files)
    expected = _forward(peft_model(model, files.folder))
    assert (expected - _forward(model)).abs().max() > 0.01, "the adapter does nothing"
    # Rounding of float32 grows with the numbers that are added up: as in the matrix, of the largest logit.
    assert (logits(model, records) - expected).abs().max() <= 1e-5 * expected.abs().max()
    for record in records.values():
        assert rank is None or record.rank == rank
        assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in record.tensors())
    return records


def check_tables(tuner: Any, config: type[PeftConfig]) -> None:
    """That each field of the config is in exactly one table."""
    tables = [set(table) for table in (tuner.APPLIED, tuner.NO_EFFECT, tuner.REFUSED)]
    fields = {field.name for field in dataclasses.fields(config)} - SHARED
    assert set.union(*tables) == fields
    assert sum(map(len, tables)) == len(fields)


def _before(record: ModuleDelta, given: list[Tensor], x: Tensor) -> tuple[Tensor, ...]:
    given.append(x)
    return (x if record.input_scale is None else x * record.input_scale,)


def _after(record: ModuleDelta, x: Tensor, y: Tensor) -> Tensor:
    if record.magnitude is not None:
        y = y * record.magnitude
    y = y + record.scale * (x @ record.a.T @ record.b.T)
    return y if record.shift is None else y + record.shift


def _forward(model: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(input_ids=TOKENS).logits
    return out


def _features(module: nn.Module) -> tuple[int, int]:
    rows, columns = module.weight.shape  # type: ignore[misc]
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
