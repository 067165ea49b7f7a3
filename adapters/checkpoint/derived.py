"""What follows from an adapter and its base's weights: computed once, kept beside the adapter's files.

The norms of DoRA and the decompositions of PiSSA, OLoRA and KaSA take seconds for a whole model. The file
says which base they belong to and has a checksum; for another base, or damaged, everything is computed again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapters.checkpoint.variants.common import BaseWeights
from adapters.errors import InvalidAdapter

DERIVED_FILE = "derived.safetensors"


class Derived:
    """The base's weights, and tensors by name that were computed from them.

    Args:
        weights: None where there are none at hand.
        known: what was computed before.

    Attributes:
        changed: whether something was computed that was not known.
    """

    def __init__(self, weights: BaseWeights | None, known: Mapping[str, Tensor] | None = None) -> None:
        self._weights = weights
        self._tensors = dict(known or {})
        self.changed = False

    @classmethod
    def load(cls, folder: Path, base_digest: str, weights: BaseWeights | None) -> Derived:
        """What `save` left in `folder`, if it is whole and belongs to this base."""
        try:
            with safe_open(folder / DERIVED_FILE, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):
            return cls(weights)
        if about.get("base") != base_digest or about.get("checksum") != _checksum(tensors):
            return cls(weights)
        return cls(weights, tensors)

    def save(self, folder: Path, base_digest: str) -> None:
        """Leave everything in `folder`, whole or not at all."""
        about = {"base": base_digest, "checksum": _checksum(self._tensors)}
        part = folder / f"{DERIVED_FILE}.part"
        save_file(self._tensors, part, about)
        os.replace(part, folder / DERIVED_FILE)

    @property
    def has_weights(self) -> bool:
        return self._weights is not None

    def weight(self, name: str) -> Tensor:
        """A parameter of the base, float32; see `BaseWeights`.

        Raises:
            InvalidAdapter: the base's weights are not at hand.
        """
        if self._weights is None:
            raise InvalidAdapter(f"the adapter can be read only with the base's weights ({name}) at hand")
        return self._weights(name).detach().to("cpu", torch.float32)

    def get(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of this name, made if it is not known."""
        if name not in self._tensors:
            self._tensors[name] = make().contiguous()
            self.changed = True
        return self._tensors[name]


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    hasher = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode("utf-8", "surrogatepass"))
        hasher.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
