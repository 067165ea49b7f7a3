"""An adapter's files, as PEFT and the server load them on the base as it is."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from training.methods.initial import converted, is_converted
from training.methods.loading import LABELLED
from training.spec import TrainSpec


def save(model: Any, folder: Path, *, base_name: str, spec: TrainSpec) -> None:
    """PEFT's two files in `folder`, the same bytes each time; `labels.json` for a task that has labels.

    `base_name`: what the config says that the base is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT wonders about modules that AdaLoRA left no rank
        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    config = copy.deepcopy(model.peft_config["default"])
    if is_converted(model):
        tensors = converted(model, tensors)
        _double(config)
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    _plain(config, base_name)
    config.save_pretrained(str(folder))
    if spec.task in LABELLED:
        names = model.config.id2label
        labels = json.dumps([names[index] for index in range(len(names))], ensure_ascii=False)
        (folder / "labels.json").write_text(labels, encoding="utf-8")


def _double(config: LoraConfig) -> None:
    """`[A; A0]` has twice the rank, and the same scale needs twice the alpha."""
    config.r *= 2
    config.lora_alpha *= 2
    config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    config.alpha_pattern = {name: 2 * alpha for name, alpha in config.alpha_pattern.items()}


def _plain(config: PeftConfig, base_name: str) -> None:
    """Fields in one order, and without those that say how A and B began: the base is as it was."""
    config.inference_mode = True
    config.base_model_name_or_path = base_name
    config.init_lora_weights = True
    config.lora_ga_config = config.eva_config = None
    for field in ("target_modules", "target_parameters"):  # PEFT's name for layers of experts is the second
        value = getattr(config, field)
        if value and not isinstance(value, str):
            setattr(config, field, sorted(value))
