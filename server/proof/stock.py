"""The stock side of the proof: transformers' own class for what is compared, and its numbers for a prompt."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from adapters.quantized import Quantization, QuantizedLinear
from server.engine import loading
from server.proof.subject import EMBEDS, HEADS, Subject

_CLASSES: dict[str, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    EMBEDS: AutoModel,
}


class StockBase:
    """The base as transformers loads it, in the class that a subject needs.

    A decoder is read once, and its body is put under each task's class. An encoder is read once for each
    subject in turn, by its task's own class: heads differ too much from family to family.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, quantization: Quantization | None) -> None:
        self._folder, self._dtype, self._quantization = folder, dtype, quantization
        self._model: Any = None
        self._encoder: tuple[Subject, Any] | None = None

    def forget(self) -> None:
        """Read the base again the next time."""
        self._model = self._encoder = None

    def model(self, subject: Subject) -> Any:
        """The stock model, in evaluation mode; a head that it lacks has random values."""
        if subject.kind == "encoder":
            if self._encoder is None or self._encoder[0] != subject:
                self._encoder = subject, self._read_encoder(subject)
            return self._encoder[1]
        if self._model is None:
            config = loading.load_config(self._folder)
            cpu = torch.device("cpu")
            self._model = loading.load_model(self._folder, config, self._dtype, cpu, self._quantization)
            _fill_out(self._model)
        if subject.task in HEADS:
            return self._with_head(subject)
        if subject.task == EMBEDS:
            return getattr(self._model, self._model.base_model_prefix)
        return self._model

    def _read_encoder(self, subject: Subject) -> Any:
        config: Any = loading.load_config(self._folder)
        if subject.labels:
            config.num_labels = subject.labels
        options = {"ignore_mismatched_sizes": True} if subject.labels else {}
        model = _CLASSES[subject.task].from_pretrained(
            self._folder, config=config, dtype=self._dtype, use_safetensors=True, **options
        )
        # DeBERTa has biases that stay float32, whatever the type that is asked for.
        return model.eval().requires_grad_(False).to(self._dtype)

    def _with_head(self, subject: Subject) -> Any:
        """The task's class around the decoder that is there already."""
        config: Any = copy.deepcopy(self._model.config)
        config.num_labels = subject.labels
        # A single prompt ends with its last token, whatever that is.
        config.pad_token_id = None
        small = copy.deepcopy(config)
        small.num_hidden_layers = 0
        if getattr(small, "layer_types", None):
            small.layer_types = []
        with torch.device("meta"):
            model = _CLASSES[subject.task].from_config(small)
        prefix = model.base_model_prefix
        setattr(model, prefix, getattr(self._model, prefix))
        model.config = config
        for name, child in model.named_children():
            if name != prefix:
                child.to_empty(device="cpu").to(self._dtype)
                for parameter in child.parameters():
                    torch.nn.init.normal_(parameter)
        return model.eval().requires_grad_(False)


def _fill_out(model: nn.Module) -> None:
    """In place of codes the weights that they stand for: PEFT knows no other quantised layers than
    bitsandbytes' own, whose products on a CPU depend on the batch.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            with torch.device("meta"):
                plain = nn.Linear(module.in_features, module.out_features, module.bias is not None)
            plain.weight = nn.Parameter(module.linear.weight(), requires_grad=False)
            plain.bias = module.bias
            model.set_submodule(name, plain.eval())


@torch.inference_mode(False)
@torch.no_grad()
def stock_rows(model: Any, subject: Subject, prompt: list[int], positions: int) -> Tensor:
    """What is compared, float32 `(rows, width)`: of the last `positions` tokens, or one row for SEQ_CLS."""
    ids = torch.tensor([prompt])
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if subject.kind == "encoder-decoder":
        arguments["decoder_input_ids"] = torch.tensor([target_tokens(_start(model), prompt, positions)])
    if subject.kind != "encoder":
        arguments["use_cache"] = False
    output = model(**arguments)
    if subject.task == EMBEDS:
        rows = output.last_hidden_state[0, -positions:]
    elif subject.task == "SEQ_CLS":
        rows = output.logits
    else:
        rows = output.logits[0, -positions:]
    result: Tensor = rows.float().contiguous()
    return result


def target_tokens(start: int, prompt: list[int], positions: int) -> list[int]:
    """What an encoder-decoder model is told to have answered so far, for as many rows."""
    return [start, *prompt][:positions]


def _start(model: Any) -> int:
    for source in (model.generation_config, model.config):
        start = getattr(source, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise ValueError("the base's configuration has no decoder_start_token_id")
