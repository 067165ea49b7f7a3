"""One number for all weights of a base, so that it can be shown that none ever changes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from adapters.batch.batched import BatchedLinear


def weights_checksum(model: nn.Module, linears: Mapping[str, BatchedLinear]) -> str:
    """Hex SHA-256 over every weight as it is used now: equal before and after, whatever was served."""
    hasher = hashlib.sha256()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, layer in linears.items():
        tensors[f"{name}.weight"] = layer.weight
        if layer.bias is not None:
            tensors[f"{name}.bias"] = layer.bias
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
        hasher.update(name.encode() + data.tobytes())
    return hasher.hexdigest()
