"""All that a run changes, as tensors: what a resume needs to go on exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from training.methods.adalora import allocation, load_allocation
from training.methods.initial import initial_tensors, load_initial

_WEIGHTS, _INITIAL, _ALLOCATION = "weights/", "initial/", "adalora/"


def trainable_state(model: Any) -> dict[str, Tensor]:
    """Weights as they train, not as they are saved; what A and B began with; AdaLoRA's tables.

    The tensors are the model's own: copy them before the next step.
    """
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    return {
        **{_WEIGHTS + name: value for name, value in weights.items()},
        **{_INITIAL + name: value for name, value in initial_tensors(model).items()},
        **{_ALLOCATION + name: value for name, value in allocation(model).items()},
    }


def load_trainable_state(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """What `trainable_state` gave, into a model that was wrapped as that one was.

    Raises:
        ValueError: it is the state of another model, method or shape.
    """
    weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
    found = _part(tensors, _WEIGHTS)
    fits = found.keys() == weights.keys() and all(
        found[name].shape == weights[name].shape for name in weights
    )
    if not fits:
        raise ValueError("the saved state is of another method, other modules or other ranks than this run's")
    load_initial(model, _part(tensors, _INITIAL))
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(found[name])
    load_allocation(model, _part(tensors, _ALLOCATION))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
