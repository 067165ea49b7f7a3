"""The frozen base's parameters by name, for adapters whose records follow from them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adapters.batch.batched import BatchedLinear
from adapters.batch.survey import SeenLinear
from adapters.checkpoint.variants.common import BaseWeights
from adapters.quantized import full_parameter


def base_weights(model: nn.Module, linears: Mapping[str, BatchedLinear | SeenLinear]) -> BaseWeights:
    """The parameters of a model; those of its linear layers are taken from `linears`. See `BaseWeights`."""

    def weights(name: str) -> Tensor:
        module, _, own = name.rpartition(".")
        layer = linears.get(module)
        tensor = getattr(layer, own) if layer is not None else full_parameter(model, name)
        if not isinstance(tensor, Tensor):
            raise KeyError(name)
        return tensor.detach().to("cpu", torch.float32)

    return weights
