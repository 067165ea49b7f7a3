"""PEFT's modules on a base: new ones, as the method begins them, or those of an adapter to go on from."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model, preprocess_loraga
from transformers import PretrainedConfig

from training.combinations import CALIBRATED, CHANGES_BASE
from training.methods.calibration import Batch, accumulate_gradients, start_from_inputs
from training.methods.configs import peft_config
from training.methods.initial import keep_initial
from training.methods.parent import go_on_from
from training.spec import TrainSpec, require


def wrap(
    model: Any,
    spec: TrainSpec,
    calibration: Iterable[Batch],
    total_steps: int,
    parent: Path | None = None,
) -> PeftModel:
    """The base with an adapter that trains; `model`, from `load_base`, is changed in place.

    A and B come from torch's random numbers: seed them first. What trains is float32, also on a bfloat16
    base: then run under autocast.

    Args:
        calibration: batches of the training data, as the model takes them; looked at by lora-ga and eva
            alone, and the same ones when a run is resumed.
        parent: a PEFT folder. Its ranks, targets and scales hold; of the spec those that differ are refused.

    Raises:
        ValueError: PEFT or this base can't do what the spec asks for, in one line.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT tells what it corrects by itself
        wrapped = (
            _begin(model, spec, calibration, total_steps)
            if parent is None
            else go_on_from(model, spec, parent)
        )
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if spec.gradient_checkpointing:
        model.activation_checkpointing_enable()
        model.enable_input_require_grads()
        for module in model.modules():  # a stack of layers may have a config of its own
            if isinstance(getattr(module, "config", None), PretrainedConfig):
                module.config.use_cache = False
    return wrapped


def _begin(model: Any, spec: TrainSpec, calibration: Iterable[Batch], total_steps: int) -> PeftModel:
    method = spec.lora.method
    quantized = getattr(model, "is_quantized", False)
    require(
        not (quantized and method in CHANGES_BASE),
        f"{method} begins from the base's own weights, and these are quantised: take qlora",
    )
    config = peft_config(model, spec, total_steps)
    batches = [_on(model, batch) for batch in calibration] if method in CALIBRATED else []
    require(bool(batches) or method not in CALIBRATED, f"{method} looks at the data first, and there is none")
    if method == "lora-ga":
        preprocess_loraga(model, config, lambda: accumulate_gradients(model, batches))
    wrapped = get_peft_model(model, config)
    if method == "eva":
        start_from_inputs(wrapped, batches, spec.lora.rank)
    if method in CHANGES_BASE:
        keep_initial(wrapped)
    return wrapped


def _on(model: Any, batch: Batch) -> Batch:
    return {name: tensor.to(model.device) for name, tensor in batch.items()}
