"""The base model as each task needs it: frozen, in the precision of the run, in NF4 for QLoRA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from training.spec import TrainSpec, require

_CLASSES: dict[str, Any] = {
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
}
LABELLED = ("SEQ_CLS", "TOKEN_CLS")


def load_base(base: str | Path, spec: TrainSpec, labels: Sequence[str] = ()) -> tuple[Any, Any]:
    """The model for `spec.task`, every parameter frozen, and its tokenizer.

    `labels`: of a task that has them, in the order of the head's outputs. The head is new, from torch's
    random numbers, unless the checkpoint has one of that size. `model.untrained` names the parameters that
    the checkpoint lacks.

    Raises:
        ValueError: the base is not for this task, or there are fewer than two labels.
    """
    require(
        spec.task not in LABELLED or len(labels) >= 2, f"{spec.task} needs at least two labels to tell apart"
    )
    device = device_of(spec)
    options: dict[str, Any] = {"dtype": getattr(torch, spec.precision), "use_safetensors": True}
    if spec.task in LABELLED:
        options |= {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "ignore_mismatched_sizes": True,
        }
    if spec.lora.method == "qlora":
        options["quantization_config"] = _nf4(spec)
    try:
        model, found = _CLASSES[spec.task].from_pretrained(
            base, device_map={"": device}, output_loading_info=True, **options
        )
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(
            f"the base {base} is no model for {spec.task}; take one that is, or another task"
        ) from None
    if spec.lora.method == "qlora" and device.type == "cpu":
        _check_blocks(model)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if model.config.pad_token_id is None:  # classifiers on decoders look for it
        model.config.pad_token_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else _end(tokenizer)
        )
    model.untrained = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    return model.eval().requires_grad_(False), tokenizer


def device_of(spec: TrainSpec) -> torch.device:
    """Where the run computes: on a GPU if there is one, unless the spec names a device.

    Raises:
        ValueError: it names a GPU, and there is none.
    """
    if spec.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    require(
        spec.device == "cpu" or torch.cuda.is_available(),
        "device cuda: torch sees no GPU here; say cpu or auto",
    )
    return torch.device(spec.device)


def _nf4(spec: TrainSpec) -> BitsAndBytesConfig:
    """As the server quantises with `--quantization nf4`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, spec.precision),
    )


def _check_blocks(model: Any) -> None:
    """On a CPU bitsandbytes 0.50 takes each row for the beginning of a block, which gives other weights."""
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and module.in_features % state.blocksize:
            raise ValueError(
                f"qlora on a CPU needs layers with a multiple of {state.blocksize} inputs, and {name} has "
                f"{module.in_features}: take lora, or a GPU"
            )


def _end(tokenizer: Any) -> int:
    return int(tokenizer.eos_token_id or 0)
