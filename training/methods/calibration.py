"""What LoRA-GA and EVA take from batches of the data before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import EvaConfig, PeftModel, initialize_lora_eva_weights
from torch import Tensor

from training.spec import require

Batch = dict[str, Tensor]
_IGNORE = -100


def accumulate_gradients(model: Any, batches: Sequence[Batch]) -> None:
    """The gradients of the loss, summed over the batches."""
    for batch in batches:
        model(**batch).loss.backward()


def start_from_inputs(wrapped: PeftModel, batches: Sequence[Batch], rank: int) -> None:
    """EVA: each A begins with the main directions of its module's inputs; ranks go where they explain most.

    Raises:
        ValueError: a batch has fewer tokens than the rank, or a module has fewer inputs.
    """
    named = "decoder_input_ids" in batches[0] or wrapped.config.is_encoder_decoder
    tokens = min(int(mask.sum()) for batch in batches for mask in _masks(batch, named))
    inputs = min(layer.in_features for layer in wrapped.modules() if hasattr(layer, "lora_A"))
    require(
        rank <= min(tokens, inputs),
        f"eva: rank {rank} is more than a batch of {tokens} tokens and layers with {inputs} inputs can show: "
        "take a larger batch_size, or a lower rank",
    )
    # PEFT waits for ever for directions that a batch does not have.
    rho = min(EvaConfig().rho, min(tokens, inputs) / rank)
    wrapped.peft_config["default"].eva_config.rho = rho
    initialize_lora_eva_weights(
        wrapped,
        [_unlike(batch) if named else batch for batch in batches],
        prepare_model_inputs_fn=lambda batch, config: _masks(batch, named),
        prepare_layer_inputs_fn=_rows,
        show_progress_bar=False,
    )


def _masks(batch: Batch, decodes: bool) -> list[Tensor]:
    """`(rows, tokens)`: where inputs are no padding; of an encoder and a decoder, both."""
    masks = [batch["attention_mask"].bool()]
    return [*masks, batch["labels"] != _IGNORE] if decodes else masks


def _rows(inputs: Any, masks: list[Tensor], name: str) -> Tensor:
    """`(tokens, inputs)`: what a module was given, without padding."""
    found: Tensor = inputs if isinstance(inputs, Tensor) else inputs[0]
    return found[next(mask for mask in masks if mask.shape == found.shape[:2])]


def _unlike(batch: Batch) -> Batch:
    """The same, with sources and targets of different widths: so that one mask fits each module's inputs."""
    if batch["input_ids"].shape != batch["labels"].shape:
        return batch
    wider = {name: torch.nn.functional.pad(batch[name], (0, 1)) for name in ("input_ids", "attention_mask")}
    return {**batch, **wider}
