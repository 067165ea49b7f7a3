"""What A and B began with, where that was taken out of the base's weights.

    while training     W - s B0 A0  +  s B A
    as it is saved     W  +  s [B, -B0] [A; A0]       twice the rank, on the base as it is

(PEFT writes the same with `path_initial_model_for_weight_conversion`, but draws random numbers for it, and
leaves out biases and modules that were trained whole.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers.pytorch_utils import Conv1D

_PARTS = ("initial_A", "initial_B")
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])\.weight")


def keep_initial(model: Any) -> None:
    """Remember A and B of every module as they are now: small, beside the layer, on its device."""
    for _, layer in _layers(model):
        for part, factor in zip(_PARTS, (layer.lora_A, layer.lora_B), strict=True):
            layer.register_buffer(part, factor["default"].weight.detach().clone(), persistent=False)


def initial_tensors(model: Any) -> dict[str, Tensor]:
    """`initial_A` and `initial_B` of every module that has them, by its name."""
    return {
        f"{name}.{part}": getattr(layer, part)
        for name, layer in _layers(model)
        for part in _PARTS
        if _has(layer)
    }


def load_initial(model: Any, tensors: dict[str, Tensor]) -> None:
    """Put the base's weights where a run that began with these factors has them.

    The same base, spec, data and machine begin with the same bytes, and nothing changes. Elsewhere the
    difference between the two beginnings is made up for, to rounding.

    Raises:
        ValueError: they are not of this model.
    """
    found = initial_tensors(model)
    if found.keys() != tensors.keys():
        raise ValueError("the saved state is of another method or other modules than this run's")
    for name, layer in _layers(model):
        if not _has(layer):
            continue
        a, b = (tensors[f"{name}.{part}"].to(getattr(layer, part)) for part in _PARTS)
        if torch.equal(a, layer.initial_A) and torch.equal(b, layer.initial_B):
            continue
        change = layer.scaling["default"] * (layer.initial_B @ layer.initial_A - b @ a)
        weight = layer.get_base_layer().weight
        weight.data += (change.T if isinstance(layer.get_base_layer(), Conv1D) else change).to(weight.dtype)
        layer.initial_A, layer.initial_B = a, b


def converted(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of PEFT's, with the beginnings subtracted: for the base as it is."""
    layers = dict(_layers(model))
    result = dict(tensors)
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            continue
        layer = layers[match["module"]]
        if match["part"] == "A":
            result[name] = torch.cat([tensor, layer.initial_A.to(tensor)], 0)
        else:
            result[name] = torch.cat([tensor, -layer.initial_B.to(tensor)], 1)
    return result


def is_converted(model: Any) -> bool:
    """Whether this model's base was changed when the adapter began."""
    return any(_has(layer) for _, layer in _layers(model))


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            yield name, module


def _has(layer: Any) -> bool:
    return hasattr(layer, _PARTS[0])
