"""The adapter of a job as PEFT makes it, taken out of the base again, and put back to save or to measure it.

    together        base with `TrainableLinear`s, which know the adapters of all jobs
    for a moment    base with the PEFT layers of one job: the model that it would have alone

Both hold the same parameters, so nothing is copied to and fro.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch import nn

from adapters.batch.trainable import TrainableAdapter, TrainableDelta
from training.run.prepare import Work
from training.spec import require


class JobLayers:
    """The adapter of one job on a base that it shares.

    Attributes:
        work: the job, prepared; its model is complete inside `in_place()` only.
        parameters: what is trained, in the order of that model.
        adapter: the same parameters, as a joint pass takes them.
    """

    def __init__(self, base: Any, prepare: Callable[[], Work]) -> None:
        """`prepare` puts the adapter on `base`, a bare model; afterwards that is as it was.

        Raises:
            ValueError: the adapter is not on linear layers alone.
        """
        self._base = base
        try:
            self.work = prepare()
            self._layers = _lora_layers(base)
            self.parameters = [each for each in self.work.model.parameters() if each.requires_grad]
        finally:
            _take_out(base)
        for name, layer in self._layers.items():
            require(isinstance(layer, Linear), f"{name} is no linear layer: an adapter on it trains alone")
        deltas = {
            name: TrainableDelta(
                layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
            )
            for name, layer in self._layers.items()
        }
        self.adapter = TrainableAdapter(
            deltas, self.work.spec.lora.dropout, torch.Generator(self._base.device)
        )

    @contextmanager
    def in_place(self) -> Iterator[Any]:
        """Inside, the job's own model, which is yielded, is as it would be alone."""
        before = {name: self._base.get_submodule(name) for name in self._layers}
        try:
            for name, layer in self._layers.items():
                _put(self._base, name, layer)
            yield self.work.model
        finally:
            for name, module in before.items():
                _put(self._base, name, module)


def _lora_layers(base: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}


def _take_out(base: Any) -> None:
    """Put the base's own layers back."""
    for name, layer in _lora_layers(base).items():
        _put(base, name, layer.get_base_layer())
    if hasattr(base, "peft_config"):  # at the next adapter PEFT would warn of this one
        del base.peft_config


def _put(base: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(base.get_submodule(parent), child, module)
